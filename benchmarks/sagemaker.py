"""An endpoint of SageMaker, measured from outside by `invoke_endpoint_with_response_stream`, or where it streams nothing by
`invoke_endpoint`.

A request is {"inputs": ..., "parameters": {"max_new_tokens": N}, "stream": true}, which Hugging Face's and DJL's containers
take, OpenAI's chat, which llama.cpp's and vLLM's take, or a question with a text. Parts of a stream may end anywhere: what is
counted is lines, of which those containers send one a token. Nothing of this was run on AWS.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from benchmarks.endpoint import TEXTS, Answer, Asked, EndpointMeasurement, summarize
from compiler.errors import UnusableInput, missing_extra

SCHEME = "sagemaker:"
_WORDS = ("river", "stone", "light", "table", "green", "seven", "paper", "north", "glass", "water", "smoke", "field")
_MOST_BYTES = 64 << 20
# It may take a request of another form, or without a stream.
_OTHER_FORM = ("ValidationError", "ModelError", "NotImplemented", "UnknownOperationException")
_ADVICE = {
    "AccessDeniedException": "Your user may not call it: sagemaker:InvokeEndpoint and InvokeEndpointWithResponseStream.",
    "ExpiredTokenException": "Your credentials have expired. Get new ones, for instance by aws sso login.",
    "ThrottlingException": "It takes no more requests for now: fewer at a time, or more instances.",
    "ModelNotReadyException": "Its model is still being loaded. Try again in a minute.",
    "ModelError": "Its container failed; its log in CloudWatch says why.",
    "ValidationError": "Is there an endpoint of that name in this region, and does it serve?",
}


def measure_sagemaker(
    name: str, asked: Asked, tell: Callable[[int, int], None] = lambda done, total: None
) -> EndpointMeasurement:
    """Measure an endpoint by its name; prompts have so many words as tokens are asked for.

    Raises:
        UnusableInput: no credentials or region; it refuses, breaks off, or answers nonsense.
    """
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", name) or asked.model is not None:
        raise UnusableInput(
            "Write sagemaker:NAME of the endpoint, without --endpoint-model: an endpoint has its model."
        )
    client, run = _client(asked.concurrency), secrets.token_hex(3)
    form = _form_of(client, name, run)
    began, answers = time.perf_counter(), []

    def one(number: int) -> Answer:
        return _request(client, name, _prompt(run, asked.prompt_tokens, number), asked.generated_tokens, form)

    with ThreadPoolExecutor(asked.concurrency) as pool:
        for answer in pool.map(one, range(1, asked.requests + 1)):
            answers.append(answer)
            tell(len(answers), asked.requests)
    wall_s = time.perf_counter() - began
    notes = [f"prompts had {asked.prompt_tokens} words; it does not count tokens"]
    notes += ["tokens are lines of its stream"] if form.streams else ["it streams nothing: only latency is its own"]
    summary = summarize(answers, wall_s)
    if not form.streams:
        summary |= dict.fromkeys(("ttft_s_p50", "ttft_s_p90", "all_tok_per_s"), None)
    return EndpointMeasurement(f"{SCHEME}{name}", name, asked, tuple(answers), wall_s, summary, tuple(notes))


def _client(concurrency: int) -> Any:
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise missing_extra("boto3", "aws") from error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, InvalidRegionError

    try:
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise UnusableInput("There are no AWS credentials. `aws configure` sets them up.")
        if not session.region_name:
            raise UnusableInput("No AWS region is set. Set AWS_DEFAULT_REGION to the endpoint's.")
        # A request that is tried again would be timed twice, and one that waits for a connection of ours too long.
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=max(10, concurrency), read_timeout=120)
        return session.client("sagemaker-runtime", config=config)
    except (InvalidRegionError, ValueError) as error:
        raise UnusableInput(
            f"{str(session.region_name)!r:.40} is no region of AWS's, or an AWS_ENDPOINT_URL is no address."
        ) from error
    except BotoCoreError as error:
        raise UnusableInput(
            f"The AWS settings cannot be used ({type(error).__name__}). Are the profile's name and its credentials right?"
        ) from error


def _prompt(run: str, words: int, number: int) -> str:
    chosen = random.Random(number)
    return f"{run}{number}. " + " ".join(chosen.choice(_WORDS) for _ in range(words))


@dataclass(frozen=True)
class _Form:
    """What a container takes: OpenAI's `chat`, a `text` as `inputs`, or a `question` with a text; and whether it streams."""

    takes: Literal["text", "chat", "question"]
    streams: bool


_FORMS = (
    _Form("text", True),
    _Form("chat", True),
    _Form("text", False),
    _Form("chat", False),
    _Form("question", False),
)


def _body(prompt: str, tokens: int, form: _Form) -> bytes:
    asked: dict[str, Any]
    if form.takes == "chat":
        asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
        asked["ignore_eos"] = True
    elif form.takes == "question":
        asked = {"inputs": {"question": "What is it?", "context": prompt}}
    else:
        # Without a temperature those containers choose the most probable token; TGI refuses one of 0.
        asked = {"inputs": prompt, "parameters": {"max_new_tokens": tokens, "do_sample": False}}
    return json.dumps(asked | ({"stream": True} if form.streams else {})).encode()


def _form_of(client: Any, name: str, run: str) -> _Form:
    """The first form that it takes; the requests that tell are not timed.

    Raises:
        UnusableInput: it takes none of them, or fails otherwise.
    """
    from botocore.exceptions import ClientError

    for form in _FORMS:
        try:
            answer = _request(client, name, _prompt(run, 8, 0), 8, form)
        except UnusableInput as error:
            code = error.__cause__.response["Error"].get("Code") if isinstance(error.__cause__, ClientError) else None
            if code not in _OTHER_FORM or form == _FORMS[-1]:
                raise
            continue
        # What comes as one document is no stream of tokens.
        return replace(form, streams=form.streams and answer.generated_tokens > 1)
    raise AssertionError("the last form raises or returns")


def _request(client: Any, name: str, prompt: str, tokens: int, form: _Form) -> Answer:
    from botocore.eventstream import ParserError
    from botocore.exceptions import BotoCoreError, ClientError, EventStreamError
    from urllib3.exceptions import HTTPError

    given = {"EndpointName": name, "ContentType": "application/json", "Body": _body(prompt, tokens, form)}
    began = time.perf_counter()
    try:
        if not form.streams:
            data = client.invoke_endpoint(**given)["Body"].read(_MOST_BYTES)
            if not data:
                raise UnusableInput(f"The endpoint {name} answered nothing.")
            spent = time.perf_counter() - began
            return Answer(spent, spent, 0, 1)
        first, last, lines = _taken(client.invoke_endpoint_with_response_stream(**given)["Body"], name)
    except EventStreamError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise UnusableInput(
            f"The endpoint {name} broke a request off ({code}). Its container's log in CloudWatch says why."
        ) from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise UnusableInput(f"The endpoint {name} refuses ({code}). {_ADVICE.get(code, '')}".strip()) from error
    except (AttributeError, TypeError, ValueError) as error:
        # botocore reads an error's document as an object, whatever it is.
        raise UnusableInput(
            f"The endpoint {name} answers nonsense. Is AWS_ENDPOINT_URL set to something else?"
        ) from error
    except (ParserError, HTTPError) as error:
        raise UnusableInput(
            f"The endpoint {name} broke a stream off, or streams nonsense ({type(error).__name__}). Its log may say why."
        ) from error
    except BotoCoreError as error:
        raise UnusableInput(
            f"The endpoint {name} cannot be reached ({type(error).__name__}). Are the network and the region right?"
        ) from error
    return Answer(first - began, last - began, 0, lines)


def _taken(parts: Iterable[dict[str, Any]], name: str) -> tuple[float, float, int]:
    """When the first and the last lines with text came, and how many of them there were."""
    first = last = None
    taken, rest, lines = 0, b"", 0
    for part in parts:
        data = part.get("PayloadPart", {}).get("Bytes", b"")
        taken += len(data)
        if taken > _MOST_BYTES:
            raise UnusableInput(f"The endpoint {name} streams more than a request can hold.")
        *whole, rest = (rest + data).split(b"\n")
        if texts := sum(_is_token(line, name) for line in whole):
            last = time.perf_counter()
            first, lines = first or last, lines + texts
    if _is_token(rest, name):
        last = time.perf_counter()
        first, lines = first or last, lines + 1
    if not taken:
        raise UnusableInput(f"The endpoint {name} ended a stream without a byte.")
    if first is None or last is None:
        raise UnusableInput(f"The endpoint {name} ended a stream without a text.")
    return first, last, lines


def _is_token(line: bytes, name: str) -> bool:
    """Whether a line of a stream, of server-sent events or of JSON, brings text.

    Raises:
        UnusableInput: it tells of an error.
    """
    data = line.strip().removeprefix(b"data:").strip()
    if not data or data == b"[DONE]" or data.startswith((b":", b"event:", b"id:")):
        return False
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return True
    if isinstance(told, dict) and (told.get("error") or told.get("error_type")):
        raise UnusableInput(
            f"The endpoint {name} broke a request off with an error of its container's. Its log says which."
        )
    if not isinstance(told, dict):
        return True
    if isinstance(choices := told.get("choices"), list):
        delta = choices[0].get("delta") if choices and isinstance(choices[0], dict) else {}
        return not isinstance(delta, dict) or any(delta.get(text) for text in TEXTS)
    return not set(told) <= {"usage", "details"}
