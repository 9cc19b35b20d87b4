"""Endpoints, measured from outside: llama.cpp's own server, and servers that answer nonsense or stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import tiny
from conftest import Run, assert_refused

from benchmarks.compare import compare
from benchmarks.endpoint import Answer, Asked, EndpointMeasurement, measure_endpoint, summarize
from benchmarks.measurement import Measurement, read_measurements
from benchmarks.served import measurement_of
from compiler.errors import UnusableInput
from compiler.model import Model


@pytest.fixture(scope="module")
def served(smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-cpp-python's server with a package of a small Llama."""
    out = tmp_path_factory.mktemp("served")
    tiny.save_decoder("llama", smollm2.folder, out / "model")
    done = edgec_here("build", out / "model", "-r", "gguf:Q8_0", "-o", out)
    assert done.returncode == 0, done.stderr
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    file = next((out / "gguf-Q8_0").glob("*.gguf"))
    command = [sys.executable, "-P", "-m", "llama_cpp.server", "--model", str(file), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--n_ctx", "256", "--interrupt_requests", "false"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_llama_cpps_server_is_measured(served: str, edgec_here: Run) -> None:
    words = ("--requests", 4, "--concurrency", 2, "--prompt-tokens", 64, "--generated-tokens", 8, "--json")
    done = edgec_here("bench", "--device", served, *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["answers"]) == 4 and found["model"].endswith(".gguf")
    for answer in found["answers"]:
        assert 0 < answer["ttft_s"] <= answer["latency_s"] <= found["wall_s"]
        # By the server's own count, its template's tokens within.
        assert abs(answer["prompt_tokens"] - 64) <= 7
    assert found["summary"]["ttft_s_p50"] > 0 and found["summary"]["ttft_s_p90"] is None
    table = edgec_here(
        "bench", "--device", f"{served}/v1/", "--requests", 2, "--generated-tokens", 4, "--prompt-tokens", 64
    )
    assert table.returncode == 0 and "TTFT s" in table.stdout and "2 requests, 1 at a time" in table.stdout


def test_a_servers_figures_are_kept_compared_and_drawn(served: str, edgec_here: Run, tmp_path: Path) -> None:
    words = ("--requests", 6, "--concurrency", 2, "--prompt-tokens", 64, "--generated-tokens", 8)
    for name in ("before", "after"):
        done = edgec_here("bench", "--device", served, *words, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
    kept = read_measurements(tmp_path / "before")[0]
    assert (kept.recipe, kept.device, kept.workload.concurrency) == ("server:openai", f"{served}/v1", 2)
    assert kept.workload.threads is None and len(kept.samples["ttft_s"]) == 5 == kept.workload.rounds
    assert kept.summary["decode_tok_per_s"] == pytest.approx(1e3 / (kept.figure("tpot_ms_p50") or 0))
    assert kept.verdict.word != "valid" and "not known" in " ".join(kept.verdict.reasons)
    assert kept.summary["peak_rss_bytes"] is None and "outside" in kept.absent["peak_rss_bytes"]
    shown = edgec_here("compare", tmp_path / "after", "--html", tmp_path / "page.html")
    assert shown.returncode == 0 and "server:openai" in shown.stdout
    assert "server:openai" in (tmp_path / "page.html").read_text()


def _measured(*paces: float) -> Measurement:
    answers = tuple(Answer(0.1, 0.1 + 9 * pace, 64, 10) for pace in paces)
    found = EndpointMeasurement(
        "http://x/v1", "org/m", Asked(requests=len(paces)), answers, 1.0, summarize(answers, 1.0), ()
    )
    return measurement_of(found, "openai")


def test_two_runs_of_a_server_compare() -> None:
    before, after = _measured(*[0.020] * 6), _measured(*[0.030] * 6)
    ratios = compare([before], [after], 0.05, metrics=("speed",))
    assert {each.metric: round(each.ratio.value, 3) for each in ratios} == {"tpot": 1.5, "ttft": 1.0}
    assert before.summary["tpot_ms_p50"] == pytest.approx(20) and before.summary["tpot_ms_p90"] is None
    assert before.environment.cpu.startswith("asked from")
    # Of answers that came in one piece the others tell.
    assert _measured(0.02, 0.0, 0.0, 0.02, 0.02).workload.rounds == 3


def test_what_streams_nothing_is_kept_in_no_file() -> None:
    answers = (Answer(0.1, 0.1, 0, 1), Answer(0.1, 0.1, 0, 9))
    found = EndpointMeasurement("http://x/v1", "m", Asked(), answers, 1.0, summarize(answers, 1.0), ())
    with pytest.raises(UnusableInput, match="Leave -o out"):
        measurement_of(found, "openai")


def test_figures_follow_from_the_answers() -> None:
    answers = [Answer(0.1, 0.1 + 0.02 * 9, 64, 10), Answer(0.3, 0.3 + 0.04 * 9, 64, 10)]
    found = summarize(answers, 1.0)
    assert found["ttft_s_p50"] == pytest.approx(0.2) and found["tpot_ms_p50"] == pytest.approx(30)
    assert found["all_tok_per_s"] == 20 and found["latency_s_p90"] is None
    assert Answer(0.1, 0.1, 4, 1).tpot_s is None


@contextmanager
def _server(
    chat: bytes, *, code: int = 200, cut: bool = False, prompts: list[str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A server whose answer to every chat is given, and what keys it was sent; streamed prompts go into `prompts`."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(b'{"data": [{"id": "m"}]}', 200)

        def do_POST(self) -> None:
            keys.append(self.headers.get("Authorization") or "")
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if prompts is not None and asked.get("stream"):
                prompts.append(asked["messages"][0]["content"])
            self._send(chat if asked.get("stream") else b'{"usage": {"prompt_tokens": 9}}', code)

        def _send(self, body: bytes, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + (100 if cut and body is chat else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", keys
    finally:
        server.shutdown()
        server.server_close()


def _event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


_TOKEN = _event({"choices": [{"delta": {"content": "a"}}]})


@pytest.mark.parametrize(
    ("chat", "code", "cut", "words"),
    [
        (b"data: {nonsense\n\n", 200, False, "streams nonsense"),
        (_event([1, 2]), 200, False, "streams nonsense"),
        (_event({"choices": "none"}), 200, False, "streams nonsense"),
        (_event({"choices": [{"delta": "none"}]}), 200, False, "streams nonsense"),
        (b"[" * 200_000 + b"\n", 200, False, "without a token"),
        (b"data: " + b"[" * 200_000 + b"\n", 200, False, "streams nonsense"),
        (b"x" * (3 << 20), 200, False, "more than a request can hold"),
        (b"data: [DONE]\n\n", 200, False, "without a token"),
        (_event({"error": {"message": "no"}}), 200, False, "an error of its own"),
        (_TOKEN, 200, True, "stopped in the middle"),
        (b"{}", 401, False, "OPENAI_API_KEY"),
        (b"{}", 500, False, "HTTP 500"),
    ],
)
def test_what_a_server_does_wrong_is_a_sentence(chat: bytes, code: int, cut: bool, words: str) -> None:
    with _server(chat, code=code, cut=cut) as (url, _), pytest.raises(UnusableInput, match=words):
        measure_endpoint(url, Asked(requests=2, generated_tokens=4))


def test_events_are_counted_where_a_server_counts_nothing() -> None:
    with _server(_TOKEN * 4 + b"data: [DONE]\n\n") as (url, _):
        found = measure_endpoint(url, Asked(prompt_tokens=9, requests=3, generated_tokens=4))
    assert [each.generated_tokens for each in found.answers] == [4, 4, 4] and not found.notes


def test_what_a_model_thinks_is_timed_as_text_by_any_name() -> None:
    for name in ("content", "reasoning_content", "reasoning"):
        chat = (
            _event({"choices": [{"delta": {"role": "assistant"}}]}) + _event({"choices": [{"delta": {name: "a"}}]}) * 3
        )
        with _server(chat) as (url, _):
            found = measure_endpoint(url, Asked(prompt_tokens=9, requests=2, generated_tokens=3))
        assert [each.generated_tokens for each in found.answers] == [3, 3]


def test_no_two_prompts_are_the_same_in_one_run_or_in_two() -> None:
    """A server that keeps prompts would answer from what it kept, and be called fast."""
    prompts: list[str] = []
    with _server(_TOKEN, prompts=prompts) as (url, _):
        for _ in range(2):
            measure_endpoint(url, Asked(requests=3, generated_tokens=1))
    assert len(prompts) == 8 and len(set(prompts)) == 8 and len({prompt[:8] for prompt in prompts}) == 8


def test_a_key_goes_to_this_machine_and_is_written_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with _server(_TOKEN) as (url, keys):
        found = measure_endpoint(url, Asked(requests=1))
    assert set(keys) == {"Bearer secret-key"} and "secret" not in repr(found)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://", "no endpoint"),
        ("http://host:port", "no endpoint"),
        ("http://[x", "no endpoint"),
        ("http://me:pw@host", "no password"),
        ("http://host/v1?key=1", "no password and no query"),
    ],
)
def test_addresses_that_are_none(url: str, words: str, edgec: Run) -> None:
    assert_refused(edgec("bench", "--device", url), 2, words)


def test_what_goes_with_a_server_and_what_does_not(edgec: Run, tmp_path: Path) -> None:
    assert_refused(edgec("bench", tmp_path, "--device", "http://localhost:1"), 2, "without packages")
    assert_refused(edgec("bench"), 2, "no package", "--device http://")
    closed = f"http://127.0.0.1:{os.getpid() % 1000 + 1}"
    assert_refused(edgec("bench", "--device", closed), 2, "Nothing answers")
