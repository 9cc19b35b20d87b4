"""An OpenAI-compatible endpoint, measured from outside: llama.cpp's server, Ollama, LM Studio, LiteRT-LM serve, vLLM.

A request streams (`/chat/completions`, server-sent events); what is timed is what a user waits for. Where an event brings
several tokens the mean of a request's tokens counts, by the number that the endpoint itself gives.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from compiler.errors import UnusableInput
from compiler.formats.json_file import parse_json
from runtimes.kinds.kind import percentile, percentile_ms

_WORDS = ("river", "stone", "light", "table", "green", "seven", "paper", "north", "glass", "water", "smoke", "field")
_TIMEOUT = httpx.Timeout(120.0, connect=10.0)
_LONGEST_LINE, _MOST_BYTES = 1 << 20, 64 << 20
# A request of the longest answer that is asked for, on a slow board.
_LONGEST_S = 1800.0
_DONE = "[DONE]"
# What a model writes, and what it thinks before, by the names that servers have for it.
TEXTS = ("content", "reasoning_content", "reasoning")
# As many as are asked for: a queue of our own would count as the server's.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
_NEAR = 0.1
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Asked:
    """What is asked of an endpoint.

    Attributes:
        prompt_tokens: of each request, by the endpoint's own count, within a tenth.
        generated_tokens: at most; an end of text ends a request before, where the endpoint does not take `ignore_eos`.
        requests: timed ones.
        concurrency: how many of them run at the same time.
        model: by the endpoint's name for it; None for its first.
    """

    prompt_tokens: int = 128
    generated_tokens: int = 64
    requests: int = 10
    concurrency: int = 1
    model: str | None = None


@dataclass(frozen=True)
class Answer:
    """One request: seconds to the first token and to the last, and tokens by the endpoint's count."""

    ttft_s: float
    latency_s: float
    prompt_tokens: int
    generated_tokens: int

    @property
    def tpot_s(self) -> float | None:
        """Seconds of each token after the first; None where there is none."""
        return (self.latency_s - self.ttft_s) / (self.generated_tokens - 1) if self.generated_tokens > 1 else None


@dataclass(frozen=True)
class EndpointMeasurement:
    """What came of it.

    Attributes:
        endpoint: its address, without what could be secret.
        model: what it calls its model.
        asked: what was asked.
        answers: of all timed requests, in the order in which they ended.
        wall_s: that all took together.
        summary: figures with their units; None where there are too few requests for a percentile.
        notes: what to know about them.
    """

    endpoint: str
    model: str
    asked: Asked
    answers: tuple[Answer, ...]
    wall_s: float
    summary: dict[str, float | None]
    notes: tuple[str, ...]


def measure_endpoint(
    url: str, asked: Asked, tell: Callable[[int, int], None] = lambda done, total: None
) -> EndpointMeasurement:
    """Measure an endpoint. A key in OPENAI_API_KEY is sent with https, and to this machine, and is written nowhere.

    Raises:
        UnusableInput: there is no such endpoint, it refuses, stops, or streams nonsense.
    """
    base = _base(url)
    with _client(base) as client:
        model = asked.model or _first_model(client, base)
        run = secrets.token_hex(3)
        words, tokens = _prompt_words(client, base, model, asked, run)
        _request(client, base, model, _prompt(run, words, 0), 2)
        began = time.perf_counter()
        answers: list[Answer] = []

        def one(number: int) -> Answer:
            return _request(client, base, model, _prompt(run, words, number), asked.generated_tokens)

        with ThreadPoolExecutor(asked.concurrency) as pool:
            for answer in pool.map(one, range(1, asked.requests + 1)):
                answers.append(answer)
                tell(len(answers), asked.requests)
        wall_s = time.perf_counter() - began
    answers = [replace(each, prompt_tokens=each.prompt_tokens or tokens) for each in answers]
    return EndpointMeasurement(
        base, model, asked, tuple(answers), wall_s, summarize(answers, wall_s), _notes(answers, asked)
    )


def summarize(answers: Sequence[Answer], wall_s: float) -> dict[str, float | None]:
    """Medians and percentiles over requests, and tokens a second of all together."""
    first = [each.ttft_s for each in answers]
    later = [value for each in answers if (value := each.tpot_s) is not None]
    latency = [each.latency_s for each in answers]
    return {
        "ttft_s_p50": percentile(first, 0.5),
        "ttft_s_p90": _tail(first),
        "tpot_ms_p50": percentile_ms(later, 0.5) if later else None,
        "tpot_ms_p90": percentile_ms(later, 0.9) if later else None,
        "latency_s_p50": percentile(latency, 0.5),
        "latency_s_p90": _tail(latency),
        "decode_tok_per_s": 1 / percentile(later, 0.5) if later and percentile(later, 0.5) > 0 else None,
        "all_tok_per_s": sum(each.generated_tokens for each in answers) / wall_s,
    }


def _tail(samples: Sequence[float]) -> float | None:
    found = percentile_ms(samples, 0.9)
    return None if found is None else found / 1e3


def _notes(answers: Sequence[Answer], asked: Asked) -> tuple[str, ...]:
    notes = []
    short = sum(each.generated_tokens < asked.generated_tokens for each in answers)
    if short:
        notes.append(
            f"{short} of {len(answers)} requests ended before {asked.generated_tokens} tokens: the model ended its text"
        )
    prompts = sorted({each.prompt_tokens for each in answers})
    if not prompts[-1]:
        notes.append(f"it does not count tokens: prompts had {asked.prompt_tokens} words")
    elif abs(prompts[len(prompts) // 2] / asked.prompt_tokens - 1) > _NEAR:
        notes.append(f"prompts had {prompts[0]} to {prompts[-1]} tokens, not {asked.prompt_tokens}")
    return tuple(notes)


def _base(url: str) -> str:
    """The address up to /v1.

    Raises:
        UnusableInput: it is no address of http or https, or has a name or password in it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UnusableInput(f"{url} is no endpoint. Write http://host:port or https://host/v1.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnusableInput(f"{url} is no endpoint. Write http://host:port or https://host/v1.")
    if parts.username or parts.password or parts.query:
        raise UnusableInput("The address of an endpoint takes no password and no query; give a key by OPENAI_API_KEY.")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else f'{path}/v1'}"


@contextmanager
def _client(base: str) -> Iterator[httpx.Client]:
    parts, key = urlsplit(base), os.environ.get("OPENAI_API_KEY")
    trusted = parts.scheme == "https" or parts.hostname in _LOOPBACK
    headers = {"Authorization": f"Bearer {key}"} if key and trusted else {}
    with httpx.Client(
        headers=headers,
        timeout=_TIMEOUT,
        limits=_LIMITS,
        follow_redirects=False,
        trust_env=parts.hostname not in _LOOPBACK,
    ) as client:
        yield client


def _first_model(client: httpx.Client, base: str) -> str:
    try:
        found = _fetched(client, "GET", base, "models")["data"][0]["id"]
    except (LookupError, TypeError) as error:
        raise UnusableInput(f"{base}/models names no model. Name one with --endpoint-model.") from error
    if not isinstance(found, str):
        raise UnusableInput(f"{base}/models names no model. Name one with --endpoint-model.")
    return found


def _fetched(client: httpx.Client, method: str, base: str, place: str, body: dict[str, Any] | None = None) -> Any:
    """A JSON document, read up to a limit of bytes and of time."""
    taken, began = bytearray(), time.monotonic()
    try:
        with client.stream(method, f"{base}/{place}", json=body) as reply:
            _require_ok(reply, base)
            for piece in reply.iter_bytes():
                taken += piece
                if len(taken) > _MOST_BYTES or time.monotonic() - began > _LONGEST_S:
                    raise UnusableInput(
                        f"{base} answers more than a document can hold. It is no endpoint of this kind."
                    )
    except httpx.HTTPError as error:
        raise _unreachable(base, error) from error
    try:
        return parse_json(bytes(taken), f"What {base} answers")
    except UnusableInput as error:
        raise _nonsense(base) from error


def _prompt(run: str, words: int, number: int) -> str:
    """Seeded words behind the name of this run, so that no server's cache of prompts answers."""
    chosen = random.Random(number)
    return f"{run}{number}. " + " ".join(chosen.choice(_WORDS) for _ in range(words))


def _prompt_words(client: httpx.Client, base: str, model: str, asked: Asked, run: str) -> tuple[int, int]:
    """How many words make the tokens that are asked for, since a template adds some, and the tokens of such a prompt.

    0 tokens where the endpoint counts none; a token a word is taken then.
    """
    few, many = (_prompt_tokens(client, base, model, _prompt(run, words, -words)) for words in (8, 40))
    if not few or not many:
        return asked.prompt_tokens, 0
    words = max(1, round(8 + (asked.prompt_tokens - few) / max((many - few) / 32, 0.25)))
    return words, _prompt_tokens(client, base, model, _prompt(run, words, -1))


def _prompt_tokens(client: httpx.Client, base: str, model: str, prompt: str) -> int:
    """Tokens of a prompt, by a request that is not streamed: some endpoints count in those alone."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1, "temperature": 0}
    document = _fetched(client, "POST", base, "chat/completions", body)
    return _counts(document.get("usage") if isinstance(document, dict) else None, 0)[1]


def _request(client: httpx.Client, base: str, model: str, prompt: str, tokens: int) -> Answer:
    """One streamed request."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    began = time.perf_counter()
    first = last = None
    events, usage = 0, None
    try:
        with client.stream("POST", f"{base}/chat/completions", json=body) as reply:
            _require_ok(reply, base)
            for event in _events(reply, base):
                usage = event.get("usage") or usage
                if _text_of(event, base):
                    last = time.perf_counter()
                    first, events = first or last, events + 1
    except httpx.HTTPError as error:
        raise _unreachable(base, error) from error
    if first is None or last is None:
        raise UnusableInput(f"{base} answered a request without a token. See that it serves a model that can chat.")
    count, given = _counts(usage, events)
    return Answer(first - began, last - began, given, count)


def _counts(usage: Any, events: int) -> tuple[int, int]:
    """Tokens generated and of the prompt; an endpoint that counts nothing sends a token an event."""
    told = usage if isinstance(usage, dict) else {}
    numbers = [told.get(name) for name in ("completion_tokens", "prompt_tokens")]
    made, given = (value if type(value) is int and value >= 0 else 0 for value in numbers)
    return made or events, given


def _events(reply: httpx.Response, base: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream.

    Raises:
        UnusableInput: a line is no event, or there are too many bytes.
    """
    taken, rest, began = 0, "", time.monotonic()
    for piece in reply.iter_text():
        taken += len(piece)
        rest += piece
        if time.monotonic() - began > _LONGEST_S:
            raise UnusableInput(
                f"{base} has streamed for {_LONGEST_S:.0f} s without an end. It is no endpoint of this kind."
            )
        if taken > _MOST_BYTES or len(rest) > _LONGEST_LINE + len(piece):
            raise UnusableInput(f"{base} streams more than a request can hold. It is no endpoint of this kind.")
        *lines, rest = rest.split("\n")
        for line in lines:
            name, _, data = line.strip().partition(":")
            if name != "data" or data.strip() == _DONE:
                continue
            try:
                event = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise _nonsense(base) from error
            if not isinstance(event, dict):
                raise _nonsense(base)
            if event.get("error"):
                raise UnusableInput(f"{base} broke a request off with an error of its own. Its log says which.")
            yield event


def _text_of(event: dict[str, Any], base: str) -> bool:
    """Whether an event brings text."""
    choices = event.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise _nonsense(base)
    deltas = [each.get("delta") or {} for each in choices]
    if not all(isinstance(each, dict) for each in deltas):
        raise _nonsense(base)
    return any(any(each.get(name) for name in TEXTS) for each in deltas)


def _require_ok(reply: httpx.Response, base: str) -> None:
    code = reply.status_code
    if code == httpx.codes.UNAUTHORIZED:
        raise UnusableInput(
            f"{base} asks for a key. Give it by OPENAI_API_KEY; it goes over https, or to this machine, alone."
        )
    if code != httpx.codes.OK:
        raise UnusableInput(f"{base} refuses with HTTP {code}. See that the address and the model's name are right.")


def _unreachable(base: str, error: httpx.HTTPError) -> UnusableInput:
    if isinstance(error, httpx.TimeoutException):
        return UnusableInput(f"{base} does not answer in time. See that it is on, and that its model is loaded.")
    if isinstance(error, httpx.ConnectError):
        return UnusableInput(f"Nothing answers at {base}. Start the server, or name its port.")
    return UnusableInput(f"{base} stopped in the middle of a request. Its log may say why.")


def _nonsense(base: str) -> UnusableInput:
    return UnusableInput(f"{base} streams nonsense: what it sends is of another form than OpenAI's API has.")
