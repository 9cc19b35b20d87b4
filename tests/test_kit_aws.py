"""Kits for AWS: the handler run by SageMaker's own toolkit in a container's layout, the script under moto, the server."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tiny
from conftest import Run, assert_refused
from moto import mock_aws

from compiler.model import Model
from compiler.package import read_package
from runtimes.kinds.encoding.inputs import require_tokenizer, text_arrays
from runtimes.kinds.encoding.use import answer, classify, embed, label_tokens
from runtimes.registry import open_session

_KINDS = ("onnx-fp32", "tflite-fp32", "neo-fp32-x86-64-v3")


@pytest.fixture(scope="module")
def built(smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    classifier = tiny.save_encoder("bert-classify", minilm_folder, out / "classifier")
    named = {kind: tiny.save_encoder(f"bert-{kind}", minilm_folder, out / kind) for kind in ("tokens", "answers")}
    llama = tiny.save_decoder("llama", smollm2.folder, out / "llama")
    options = ("--sequence-length", 32, "-o")
    encoders = ("onnx:fp32", "tflite:fp32", "neo:fp32@x86-64-v3", "neo:fp32@local", "neuron:fp32")
    for model, recipes in (
        (bert, encoders),
        (classifier, ("onnx:fp32",)),
        *((each, ("onnx:fp32",)) for each in named.values()),
        (llama, ("gguf:F16", "onnx:int8")),
    ):
        words = [word for recipe in recipes for word in ("-r", recipe)]
        done = edgec_here("build", model, *words, *options, out / f"{model.name}-out")
        assert done.returncode == 0, done.stdout + done.stderr
    for folder in (
        *(out / "bert-out" / kind for kind in _KINDS),
        *(out / f"{name}-out" / "onnx-fp32" for name in ("classifier", "tokens", "answers")),
        out / "llama-out" / "gguf-F16",
        out / "llama-out" / "onnx-int8",
    ):
        for system in ("sagemaker", "greengrass"):
            done = edgec_here(
                "kit", folder, "--for", system, "-o", out / f"{folder.parent.name}-{folder.name}-{system}"
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return out


def _model_folder(kit: Path, tmp_path: Path) -> Path:
    """/opt/ml/model as SageMaker makes it of the archive."""
    folder = tmp_path / "opt" / "ml" / "model"
    folder.mkdir(parents=True)
    with tarfile.open(kit / "model.tar.gz", "r:gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def _component(kit: Path, tmp_path: Path) -> Path:
    """/opt/ml/model with what a component of Greengrass is unpacked to: the toolkit takes the same handler."""
    folder = tmp_path / "opt" / "ml" / "model"
    with zipfile.ZipFile(kit / "component.zip") as archive:
        archive.extractall(folder)
    return folder


_CONTAINER = """
import json, os, sys
sys.path.insert(0, os.path.join(sys.argv[1], "code"))
from sagemaker_inference import environment, transformer
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
class Processor:
    def get_request_properties(self): return {"Content-Type": "application/json", "Accept": "application/json"}
    def add_response_property(self, name, value): pass
    def report_status(self, code, reason_phrase=None): print("STATUS", code, reason_phrase, file=sys.stderr)
class Context:
    request_processor = [Processor()]
    system_properties = {"model_dir": sys.argv[1]}
    def get_request_header(self, index, name): return "application/json"
    def get_all_request_header(self, index): return {"Content-Type": "application/json", "Accept": "application/json"}
    def set_response_content_type(self, index, kind): self.kind = kind
    def set_response_status(self, code, phrase=None, idx=0): print("STATUS", code, phrase, file=sys.stderr)
made = transformer.Transformer(DefaultInferenceHandler())
(answer,) = made.transform([{"body": sys.stdin.read().encode()}], Context())
print(answer if isinstance(answer, str) else answer.decode())
"""


def _by_the_toolkit(folder: Path, request: dict[str, Any]) -> Any:
    """What AWS's own toolkit makes of a request by the handler in a container's folder, in a process of its own."""
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(folder.parent.parent), "SAGEMAKER_PROGRAM": "inference.py"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CONTAINER, str(folder)], input=json.dumps(request), text=True,
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", _KINDS)
def test_sagemakers_toolkit_gives_the_packages_vectors(kind: str, built: Path, tmp_path: Path) -> None:
    pytest.importorskip("sagemaker_inference")
    folder = _model_folder(built / f"bert-out-{kind}-sagemaker", tmp_path)
    found = _by_the_toolkit(folder, {"inputs": ["The tide was out.", "Hello"]})
    package = read_package(built / "bert-out" / kind)
    session = open_session(package, 1)
    for text, vectors in zip(("The tide was out.", "Hello"), found, strict=True):
        wanted = embed(package, session, text, lambda note: None)
        got = np.asarray(vectors)
        mean = got if got.ndim == 1 else got.mean(0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), wanted / np.linalg.norm(wanted), atol=1e-4)


def test_labels_and_texts(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("sagemaker_inference")
    folder = _model_folder(built / "classifier-out-onnx-fp32-sagemaker", tmp_path / "labels")
    (scores,) = _by_the_toolkit(folder, {"inputs": "Good"})
    package = read_package(built / "classifier-out" / "onnx-fp32")
    ids = text_arrays(require_tokenizer(package).encode("Good").ids)
    wanted = classify(package, open_session(package, 1), ids)
    assert [each["label"] for each in scores] == [label for label, _ in wanted]
    np.testing.assert_allclose([each["score"] for each in scores], [share for _, share in wanted], atol=1e-4)
    assert len(scores) == 3 and abs(sum(each["score"] for each in scores) - 1) < 1e-5
    assert scores == sorted(scores, key=lambda each: -each["score"])
    folder = _component(built / "llama-out-gguf-F16-greengrass", tmp_path / "texts")
    (made,) = _by_the_toolkit(folder, {"inputs": "The tide", "parameters": {"max_new_tokens": 4}})
    assert isinstance(made["generated_text"], str)
    chat = _by_the_toolkit(folder, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})
    assert chat["choices"][0]["message"]["role"] == "assistant"


# What DJL Serving does with model.py, by engines/python/setup/djl_python of v0.36.0: it is imported three times, called once
# with nothing before the first request, and gets bytes and properties.
_DJL = """
import importlib, json, os, sys, types
class Output:
    def __init__(self): self.code, self.properties, self.content = 200, {}, []
    def error(self, text, code=424, message=""): self.code = code; self.content.append(text); return self
    def add(self, value): self.content.append(value)
    def add_property(self, name, value): self.properties[name] = value
class Input:
    def __init__(self, body=None, **properties): self.body, self.properties = body, properties
    def is_empty(self): return self.body is None
    def get_as_bytes(self): return bytearray(self.body)
    def get_property(self, name): return {k.lower(): v for k, v in self.properties.items()}.get(name.lower())
sys.modules["djl_python"] = types.SimpleNamespace(Input=Input, Output=Output)
os.chdir(sys.argv[1]); sys.path.insert(0, sys.argv[1])
for _ in range(3):
    sys.modules.pop("model", None)
    model = importlib.import_module("model")
assert model.handle(Input()) is None
answers = []
for body in json.loads(sys.stdin.read()):
    made = model.handle(Input(body.encode(), **{"Content-Type": "application/json"}))
    answers.append([made.code, made.properties.get("Content-Type"), "".join(made.content)])
print(json.dumps(answers))
"""
_REAL_DJL = """
import json, sys
from djl_python.test_model import TestHandler, extract_output_as_string
from djl_python import Input
handler = TestHandler("model.py", sys.argv[1])
assert handler.inference(Input()) is None
answers = []
for body in json.loads(sys.stdin.read()):
    given = Input(); given.content.add(key="data", value=bytearray(body.encode()))
    given.properties["Content-Type"] = "application/json"
    made = handler.inference(given)
    answers.append([made.code, made.properties.get("Content-Type"), extract_output_as_string(made)])
print(json.dumps(answers))
"""


def _by_djl(folder: Path, requests: list[str], script: str = _DJL) -> list[tuple[int, str | None, str]]:
    """What requests get by model.py in DJL Serving's layout, in a process of its own."""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, input=json.dumps(requests), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(code, kind, text) for code, kind, text in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("script", [_DJL, _REAL_DJL], ids=["stand-in", "djl_python"])
def test_djl_servings_layout_gives_the_packages_labels(script: str, built: Path, tmp_path: Path) -> None:
    """The stand-in always; DJL's own Python, which is on no index, where PYTHONPATH has it."""
    if script is _REAL_DJL:
        pytest.importorskip("djl_python")
    folder = _model_folder(built / "classifier-out-onnx-fp32-sagemaker", tmp_path)
    told = dict(line.split("=") for line in (folder / "serving.properties").read_text().splitlines())
    assert told["engine"] == "Python" and (folder / told["option.entryPoint"]).is_file()
    assert told["minWorkers"] == told["maxWorkers"] == "1"
    assert (folder / "requirements.txt").read_text() == (folder / "code" / "requirements.txt").read_text()
    good, empty, nonsense, other = _by_djl(folder, ['{"inputs": "Good"}', "", "[no json", '{"inputs": 3}'], script)
    package = read_package(built / "classifier-out" / "onnx-fp32")
    ids = text_arrays(require_tokenizer(package).encode("Good").ids)
    wanted = classify(package, open_session(package, 1), ids)
    assert good[:2] == (200, "application/json")
    assert [each["label"] for each in json.loads(good[2])[0]] == [label for label, _ in wanted]
    assert [empty[0], nonsense[0], other[0]] == [400, 400, 400] and "Send inputs" in other[2]


def test_tokens_and_answers_are_those_of_the_package(built: Path, tmp_path: Path) -> None:
    text, question = "The tide was out in Bergen.", "Where was it?"
    folder = _model_folder(built / "tokens-out-onnx-fp32-sagemaker", tmp_path / "tokens")
    (made,) = _by_djl(folder, [json.dumps({"inputs": text})])
    package = read_package(built / "tokens-out" / "onnx-fp32")
    wanted = label_tokens(package, open_session(package, 1), text, lambda note: None)
    assert made[0] == 200
    (found,) = json.loads(made[2])
    assert [(each["index"], each["entity"]) for each in found] == [
        (place, label) for place, (_, label) in enumerate(wanted) if 0 < place < len(wanted) - 1
    ]
    assert all(text[each["start"] : each["end"]] == each["word"] and 0 < each["score"] <= 1 for each in found)
    folder = _model_folder(built / "answers-out-onnx-fp32-sagemaker", tmp_path / "answers")
    asked = {"inputs": {"question": question, "context": text}}
    made, wrong, long = _by_djl(
        folder,
        [json.dumps(asked), '{"inputs": "x"}', json.dumps({"inputs": {"question": "a " * 600, "context": text}})],
    )
    package = read_package(built / "answers-out" / "onnx-fp32")
    best = answer(package, open_session(package, 1), question, text, lambda note: None)
    (span,) = json.loads(made[2])
    assert (span["answer"], text[span["start"] : span["end"]]) == (best.text, best.text)
    assert span["score"] == pytest.approx(best.probability, rel=1e-3)
    assert (wrong[0], long[0]) == (400, 400) and "a question and a context" in wrong[2] and "no room" in long[2]


def test_genai_writes_what_the_package_writes(built: Path, tmp_path: Path) -> None:
    folder = _model_folder(built / "llama-out-onnx-int8-sagemaker", tmp_path / "djl")
    asked = {"inputs": "The tide was", "parameters": {"max_new_tokens": 6}}
    made, chat, long = _by_djl(
        folder,
        [
            json.dumps(asked),
            json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
            json.dumps({"inputs": "a " * 5000}),
        ],
    )
    assert made[0] == chat[0] == 200, made[2] + chat[2]
    assert json.loads(chat[2])["choices"][0]["message"]["role"] == "assistant"
    assert long[0] == 400 and "tokens" in long[2]
    package = read_package(built / "llama-out" / "onnx-int8")
    session = open_session(package, 1)
    prompt = [*session.text.begin, *session.text.encode("The tide was")]
    session.reset()
    logits = session.extend(prompt)
    tokens: list[int] = []
    while len(tokens) < 6 and int(logits.argmax()) not in session.text.ends:
        tokens.append(int(logits.argmax()))
        logits = session.extend((tokens[-1],))
    (told,) = json.loads(made[2])
    assert told["generated_text"] == session.text.decode(tokens)
    component = _component(built / "llama-out-onnx-int8-greengrass", tmp_path / "component")
    assert (component / "genai" / "genai_config.json").is_file()


def test_llamacpps_server_serves_the_archive_of_a_language_model(built: Path, tmp_path: Path) -> None:
    """AWS's container finds the GGUF file in /opt/ml/model and hands /invocations to the server's chats."""
    kit = built / "llama-out-gguf-F16-sagemaker"
    folder = _model_folder(kit, tmp_path)
    (file,) = folder.rglob("*")
    assert file.suffix == ".gguf"
    deploy = runpy.run_path(str(kit / "deploy.py"))
    assert "/llama-cpp:server-sagemaker-cpu" in deploy["IMAGE"]
    context, port = int(deploy["ENVIRONMENT"]["SM_LLAMA_CPP_CTX_SIZE"]), _free_port()
    command = [sys.executable, "-P", "-m", "llama_cpp.server", "--model", str(file), "--n_ctx", str(context)]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/v1/models")
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}).encode()
        status, told = _post(port, body, "/v1/chat/completions")
        assert status == 200 and json.loads(told)["choices"][0]["message"]["role"] == "assistant"
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("data", "kind"), [(b"[]", "application/json"), (b"{}", "application/json"), (b"x", "text/csv")]
)
def test_a_request_of_another_form_is_refused(data: bytes, kind: str, built: Path, tmp_path: Path) -> None:
    folder = _component(built / "llama-out-gguf-F16-greengrass", tmp_path)
    spec = importlib.util.spec_from_file_location("handler", folder / "code" / "inference.py")
    assert spec is not None and spec.loader is not None
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    with pytest.raises(ValueError, match=r"Send inputs|is not taken"):
        handler.input_fn(data, kind)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="models")
        yield


def test_the_script_deploys_and_takes_away(built: Path, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = built / "bert-out-onnx-fp32-sagemaker"
    role = "arn:aws:iam::123456789012:role/sagemaker"

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["deploy.py", *words])
        runpy.run_path(str(kit / "deploy.py"), run_name="__main__")

    run("--bucket", "models", "--role", role)
    service = boto3.client("sagemaker")
    (endpoint,) = service.list_endpoints()["Endpoints"]
    assert endpoint["EndpointName"] == "bert-onnx-fp32" and endpoint["EndpointStatus"] == "InService"
    container = service.describe_model(ModelName="bert-onnx-fp32")["PrimaryContainer"]
    assert container["ModelDataUrl"] == "s3://models/edgec/bert-onnx-fp32/model.tar.gz"
    assert container["Image"].startswith("763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:")
    assert set(container["Environment"]) == {"OPTION_MODEL_LOADING_TIMEOUT", "OPTION_PREDICT_TIMEOUT"}
    run("--delete")
    assert not service.list_endpoints()["Endpoints"] and not service.list_models()["Models"]
    run("--delete")
    with pytest.raises(SystemExit):
        run("--bucket", "models")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _post(port: int, body: bytes, path: str = "/invocations") -> tuple[int, bytes]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                assert reply.status == 200
            return
        except OSError:
            time.sleep(0.2)


def test_a_component_serves_from_its_archive(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built / "bert-out-onnx-fp32-greengrass" / "component.zip") as archive:
        archive.extractall(tmp_path / "component")
    port = _free_port()
    command = [sys.executable, str(tmp_path / "component" / "serve.py")]
    server = subprocess.Popen(command, env={**os.environ, "PORT": str(port)}, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping")
        status, body = _post(port, json.dumps({"inputs": "Hello"}).encode())
        assert status == 200 and len(json.loads(body)) == 1
        assert _post(port, b"no json")[0] == 400 and _post(port, b"{}")[0] == 400
    finally:
        server.kill()
        server.wait()


def test_a_components_recipe_is_of_greengrasss_form(built: Path) -> None:
    for name in ("bert-out-onnx-fp32", "bert-out-neo-fp32-x86-64-v3", "llama-out-gguf-F16"):
        kit = built / f"{name}-greengrass"
        recipe = json.loads((kit / "recipe.json").read_text())
        assert recipe["RecipeFormatVersion"] == "2020-01-25" and len((kit / "recipe.json").read_bytes()) < 16000
        (manifest,) = recipe["Manifests"]
        (artifact,) = manifest["Artifacts"]
        assert artifact["Unarchive"] == "ZIP" and artifact["URI"].endswith("/component.zip")
        assert set(manifest["Lifecycle"]) == {"Setenv", "Install", "Run"}
        expected = {"os": "linux", "architecture": "amd64"} if "neo" in name else {"os": "linux"}
        assert manifest["Platform"] == expected
        with zipfile.ZipFile(kit / "component.zip") as archive:
            assert {"serve.py", "code/inference.py", "code/requirements.txt"} <= set(archive.namelist())


def test_two_kits_have_the_same_bytes(built: Path, edgec_here: Run, tmp_path: Path) -> None:
    for system in ("sagemaker", "greengrass"):
        done = edgec_here("kit", built / "bert-out" / "onnx-fp32", "--for", system, "-o", tmp_path / system)
        assert done.returncode == 0, done.stderr
        first = built / f"bert-out-onnx-fp32-{system}"
        for path in first.iterdir():
            assert path.read_bytes() == (tmp_path / system / path.name).read_bytes()


def test_what_a_kit_does_not_serve_is_refused(built: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("kit", built / "bert-out" / "neuron-fp32", "--for", "sagemaker", "-o", tmp_path / "out")
    assert_refused(done, 2, "neuron:fp32")
    done = edgec("kit", built / "bert-out" / "neo-fp32-local", "--for", "sagemaker", "-o", tmp_path / "out")
    assert_refused(done, 2, "neo:fp32@x86-64-v3", "lack its instructions")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
