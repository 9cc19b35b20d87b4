"""`edgec bench --device sagemaker:NAME` against a local stand-in of SageMaker's API, whose frames botocore itself reads."""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from conftest import Run, assert_refused

from benchmarks.measurement import read_measurements


def _header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()


def _frame(headers: dict[str, str], payload: bytes) -> bytes:
    """A message of application/vnd.amazon.eventstream."""
    head = b"".join(_header(name, value) for name, value in headers.items())
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", binascii.crc32(prelude))
    body = prelude + head + payload
    return body + struct.pack("!I", binascii.crc32(body))


def _part(data: bytes) -> bytes:
    kinds = {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"}
    return _frame(kinds, data)


def _broken(kind: str) -> bytes:
    kinds = {":message-type": "exception", ":exception-type": kind, ":content-type": "application/json"}
    return _frame(kinds, b'{"Message": "no"}')


class _Endpoint(BaseHTTPRequestHandler):
    """What an endpoint does is told by its name."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(given)
        name, stream = self.path.split("/")[2], self.path.endswith("invocations-response-stream")
        if name == "questions":
            fits = not stream and isinstance(given.get("inputs"), dict) and given["inputs"]["context"]
            told = {} if fits else {"x-amzn-ErrorType": "ModelError"}
            self._reply(200 if fits else 424, b'[{"answer": "a"}]' if fits else b"{}", "application/json", told)
        elif name == "lists":
            self._reply(424, b"[]", "application/json")
        elif name == "chats" and "messages" not in given:
            self._reply(424, b'{"message": "no"}', "application/json", {"x-amzn-ErrorType": "ModelError"})
        elif name == "chats":
            deltas: list[dict[str, str]] = [
                {"role": "assistant"},
                *({"content": "w"} for _ in range(given["max_tokens"])),
                {},
            ]
            events = [b"data: " + json.dumps({"choices": [{"delta": each}]}).encode() + b"\n\n" for each in deltas]
            frames = b"".join(_part(each) for each in (*events, b"data: [DONE]\n\n"))
            self._reply(200, frames, "application/vnd.amazon.eventstream")
        elif name == "refuses" or (name == "plain" and stream):
            code = "AccessDeniedException" if name == "refuses" else "ModelError"
            self._reply(424, json.dumps({"message": "no"}).encode(), "application/json", {"x-amzn-ErrorType": code})
        elif not stream:
            self._reply(200, b'[{"generated_text": "a b"}]', "application/json")
        else:
            tokens = given["parameters"]["max_new_tokens"]
            lines = b"".join(b'data: {"token": {"text": "w"}}\n' for _ in range(tokens))
            # Parts end in the middle of lines.
            frames = b"".join(_part(lines[start : start + 17]) for start in range(0, len(lines), 17))
            odd = {
                "breaks": frames + _broken("ModelStreamError"), "empty": b"", "garbage": b"\x00\x00\x00\x20" * 9,
                "errors": _part(b'data: {"error": "CUDA out of memory"}\n'), "whole": _part(b'[{"generated_text": "a b"}]'),
            }  # fmt: skip
            frames = odd.get(name, frames)
            self._reply(200, frames, "application/vnd.amazon.eventstream")

    def _reply(self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def settings() -> Iterator[dict[str, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    server.shutdown()


_WORDS = ("--prompt-tokens", 8, "--generated-tokens", 5, "--requests", 6, "--concurrency", 2)


def test_a_stream_is_measured(settings: dict[str, str], edgec: Run) -> None:
    done = edgec("bench", "--device", "sagemaker:streams", *_WORDS, "--json", **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["answers"]) == 6 and {each["generated_tokens"] for each in found["answers"]} == {5}
    assert 0 < found["summary"]["ttft_s_p50"] <= found["summary"]["latency_s_p50"]
    assert any("lines of its stream" in note for note in found["notes"])
    assert all(len(each["inputs"].split()) in (9,) for each in _Endpoint.asked[-6:])
    table = edgec("bench", "--device", "sagemaker:streams", *_WORDS, **settings)
    assert "TTFT" in table.stdout and "6 requests, 2 at a time" in table.stdout


def test_a_container_that_takes_questions_is_measured_by_questions(settings: dict[str, str], edgec: Run) -> None:
    done = edgec("bench", "--device", "sagemaker:questions", *_WORDS, "--json", **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["answers"]) == 6 and any("streams nothing" in note for note in found["notes"])


def test_an_error_of_another_form_is_told(settings: dict[str, str], edgec: Run) -> None:
    assert_refused(edgec("bench", "--device", "sagemaker:lists", *_WORDS, **settings), 2, "answers nonsense")


def test_a_container_that_takes_chats_alone_is_measured_by_chats(settings: dict[str, str], edgec: Run) -> None:
    done = edgec("bench", "--device", "sagemaker:chats", *_WORDS, "--json", **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # The first event tells the role and the last nothing.
    assert {each["generated_tokens"] for each in found["answers"]} == {5}
    assert all(each["messages"][0]["role"] == "user" for each in _Endpoint.asked[-6:])


def test_a_streams_figures_are_kept(settings: dict[str, str], edgec: Run, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    assert edgec("bench", "--device", "sagemaker:streams", *_WORDS, "-o", out, **settings).returncode == 0
    (kept,) = read_measurements(out)
    assert (kept.recipe, kept.device, kept.workload.requests) == ("server:sagemaker", "sagemaker:streams", 6)
    done = edgec("bench", "--device", "sagemaker:plain", *_WORDS, "-o", tmp_path / "none", **settings)
    assert_refused(done, 2, "streams no tokens one by one")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["plain", "whole"])
def test_what_streams_nothing_has_its_latency(name: str, settings: dict[str, str], edgec: Run) -> None:
    """`whole` answers the call for a stream with one document."""
    done = edgec("bench", "--device", f"sagemaker:{name}", *_WORDS, "--json", **settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["summary"]["ttft_s_p50"] is None and found["summary"]["latency_s_p50"] > 0
    assert any("streams nothing" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refuses", ("AccessDeniedException", "sagemaker:InvokeEndpoint")),
        ("breaks", ("broke a request off", "ModelStreamError", "CloudWatch")),
        ("empty", ("without a byte",)),
        ("garbage", ("streams nonsense",)),
        ("errors", ("an error of its container's",)),
    ],
)
def test_what_goes_wrong_is_told(name: str, words: tuple[str, ...], settings: dict[str, str], edgec: Run) -> None:
    assert_refused(edgec("bench", "--device", f"sagemaker:{name}", *_WORDS, **settings), 2, *words)


def test_without_credentials_region_or_an_endpoint(settings: dict[str, str], edgec: Run) -> None:
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_PROFILE": "",
              "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_CONFIG_FILE": "/nonexistent"}  # fmt: skip
    del nobody["AWS_PROFILE"]
    words = ("bench", "--device", "sagemaker:streams", *_WORDS)
    assert_refused(edgec(*words, **{**settings, **nobody}), 2, "no AWS credentials")
    assert_refused(edgec(*words, **{**settings, "AWS_DEFAULT_REGION": ""}), 2, "No AWS region")
    gone = {**settings, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": "http://127.0.0.1:9"}
    assert_refused(edgec(*words, **gone), 2, "cannot be reached")
    assert_refused(edgec(*words, **{**settings, "AWS_PROFILE": "nobody-has-this"}), 2, "ProfileNotFound")
