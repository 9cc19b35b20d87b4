"""A hub id is fetched with huggingface_hub's own client: only the files that are needed, then offline from its cache.

No hub is reachable from every machine that runs these tests, so a server on the loopback speaks the hub's protocol for one
small repository; the client is the real one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny
from conftest import Run, assert_refused

from compiler.corpus import PASSAGES
from compiler.inputs.hub import is_hub_id, needed_files

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_TOKEN = "hf_" + "x" * 30


@pytest.fixture
def hub(minilm_folder: Path, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and the requests that it got."""
    folder = tiny.save_encoder("distilbert", minilm_folder, tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"never")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "tf_model.h5").write_bytes(b"never")
    texts = "".join(json.dumps({"text": passage}) + "\n" for passage in PASSAGES * 3).encode()
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: bool) -> None:
            requests.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            if path.startswith("/api/models/gated/"):
                self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            elif path in (
                "/api/models/org/tiny",
                "/api/models/org/tiny/revision/main",
                f"/api/models/org/tiny/revision/{_COMMIT}",
            ):
                files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                document = {"id": "org/tiny", "modelId": "org/tiny", "sha": _COMMIT, "siblings": files, "tags": []}
                self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body)
            elif path == f"/api/models/org/tiny/tree/{_COMMIT}":
                listing = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f"{index:040x}"}
                    for index, f in enumerate(sorted(folder.iterdir()))
                ]
                self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith("/api/models/org/tiny/revision/"):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            elif path.startswith(f"/org/tiny/resolve/{_COMMIT}/"):
                content = (folder / path.rsplit("/", 1)[1]).read_bytes()
                tag = hashlib.sha256(content).hexdigest()
                self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": _COMMIT}, body)
            elif path == "/api/datasets/org/texts/tree/main":
                names = ("README.md", "data/test.jsonl", "data/train.jsonl")
                listing = [{"type": "file", "path": name, "size": len(texts), "oid": "0" * 40} for name in names]
                self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
            elif path == "/datasets/org/texts/resolve/main/data/train.jsonl":
                self._send(200, texts, {"ETag": f'"{"0" * 40}"', "X-Repo-Commit": _COMMIT}, body)
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()


def test_a_hub_model_is_fetched_once_and_then_found_offline(
    hub: tuple[str, list[str]], tmp_path: Path, edgec: Run
) -> None:
    address, requests = hub
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": _TOKEN}
    online["EDGEC_CACHE"] = str(tmp_path / "cache")
    done = edgec("build", "org/tiny", "-r", "onnx:fp32", "-o", tmp_path / "out", "--verify", **online)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "onnx-fp32" / "package.json").read_text())
    assert manifest["model"]["source"] == f"org/tiny@{_COMMIT}"
    assert manifest["model"]["licence"] == "mit"
    fetched = {request.rsplit("/", 1)[1] for request in requests if "/resolve/" in request}
    assert "model.safetensors" in fetched
    assert not fetched & {"pytorch_model.bin", "tf_model.h5"}
    offline = {**online, "HF_HUB_OFFLINE": "1"}
    for name in ("org/tiny", f"org/tiny@{_COMMIT}"):
        done = edgec("inspect", name, "--json", **offline)
        assert done.returncode == 0, done.stderr
    contents = [request for request in requests if request.startswith("GET") and "/resolve/" in request]
    assert len(contents) == len(set(contents)), "nothing is fetched twice"
    for path in tmp_path.rglob("*"):  # the hub's cache, ours, and the package
        assert not path.is_file() or _TOKEN.encode() not in path.read_bytes(), path


def test_a_dataset_of_the_hub_calibrates(
    hub: tuple[str, list[str]], minilm_folder: Path, tmp_path: Path, edgec: Run
) -> None:
    model = tiny.save_encoder("distilbert", minilm_folder, tmp_path / "model")
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": _TOKEN}
    options = ["--calibration-samples", "8", "--calibration-tokens", "128", "-o", tmp_path / "out"]
    done = edgec("build", model, "-r", "onnx:int8-gptq-g32", "--calibration", "hf:org/texts", *options, **online)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "onnx-int8-gptq-g32" / "package.json").read_text())
    assert manifest["recipe_full"]["quantization"]["calibration"]["source"] == "hf:org/texts/data/train.jsonl"
    fetched = {request.rsplit("/", 1)[1] for request in hub[1] if request.startswith("GET /datasets/")}
    assert fetched == {"train.jsonl"}
    for dataset, words in (("hf:org/none", ("no dataset", "org/none")), ("hf:nothing", ("hf:org/dataset",))):
        again = edgec("build", model, "-r", "onnx:int8-gptq-g32", "--calibration", dataset, *options, **online)
        assert_refused(again, 2, *words)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("org/absent", ("org/absent", "none on the hub")),
        ("org/tiny@v9", ("v9", "revision")),
        ("gated/model", ("gated", "HF_TOKEN")),
    ],
)
def test_what_the_hub_does_not_give_is_told(
    model: str, words: tuple[str, ...], hub: tuple[str, list[str]], tmp_path: Path, edgec: Run
) -> None:
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "hf")}
    assert_refused(edgec("inspect", model, **environment), 2, *words)


def test_one_set_of_weights_is_chosen_and_subfolders_are_left() -> None:
    names = ["config.json", "model.safetensors", "model.fp16.safetensors", "onnx/model.onnx", "original/x.safetensors",
             "pytorch_model.bin", "tokenizer.json", "README.md", "LICENSE"]  # fmt: skip
    assert needed_files(names) == ["config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE"]
    shards = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert needed_files([*shards, "consolidated.safetensors"]) == shards


def test_the_form_of_hub_ids() -> None:
    assert is_hub_id("org/name") and is_hub_id("name") and is_hub_id("org/name@main")
    assert not is_hub_id("./org/name") and not is_hub_id("/org/name") and not is_hub_id("a/b/c")
