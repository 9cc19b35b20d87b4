"""What a server was measured to do, as a Measurement: so that results of packages and of servers are kept and shown alike."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime

from benchmarks.agent.environment import Environment, read_environment
from benchmarks.endpoint import Answer, EndpointMeasurement
from benchmarks.measurement import Measurement
from benchmarks.validity import Disturbance, Validity, judge
from compiler import __version__
from compiler.errors import UnusableInput
from runtimes.kinds.kind import percentile, percentile_ms
from runtimes.workload import Workload

_ROUNDS = 5
_OUTSIDE = "a server is measured from outside"
_OF_REQUESTS = "each request has one time, the mean of its tokens"
_ABSENT = {
    "tpot_ms_p90": _OF_REQUESTS,
    "tpot_ms_p99": _OF_REQUESTS,
    "ttft_s_p90": "too few requests",
    "latency_s_p90": "too few requests",
    "prefill_tok_per_s": "its time to the first token has the network's and the queue's in it",
}
_UNWATCHED = "what else ran on the server's machine is not known"


def measurement_of(found: EndpointMeasurement, interface: str) -> Measurement:
    """The measurement of a server.

    Args:
        found: what came of its requests.
        interface: what it speaks, `openai` or `sagemaker`; stands for a recipe's scheme.

    Raises:
        UnusableInput: it streams nothing, so that there is no time per token.
    """
    # What came in one piece has no time per token.
    timed = tuple(each for each in found.answers if each.tpot_s)
    if not timed:
        raise UnusableInput(
            f"{found.endpoint} streams no tokens one by one, and a result file is of times per token. Leave -o out."
        )
    rounds = _rounds(timed)
    paces = tuple(tuple(each.tpot_s or 0.0 for each in part) for part in rounds)
    workload = Workload(
        prompt_tokens=found.asked.prompt_tokens,
        generated_tokens=found.asked.generated_tokens,
        sequence_length=None,
        rounds=len(rounds),
        repetitions=None,
        warmup_repetitions=None,
        threads=None,
        requests=found.asked.requests,
        concurrency=found.asked.concurrency,
    )
    every = [pace for part in paces for pace in part]
    summary = {
        "ttft_s": found.summary["ttft_s_p50"],
        "ttft_s_p90": found.summary["ttft_s_p90"],
        "prefill_tok_per_s": None,
        "tpot_ms_p50": percentile_ms(every, 0.5),
        **dict.fromkeys(("tpot_ms_p90", "tpot_ms_p99")),
        "decode_tok_per_s": 1 / percentile(every, 0.5),
        "latency_s_p50": found.summary["latency_s_p50"],
        "latency_s_p90": found.summary["latency_s_p90"],
        "all_tok_per_s": found.summary["all_tok_per_s"],
        **dict.fromkeys(("load_s", "package_bytes", "peak_rss_bytes", "peak_anon_bytes", "file_mapped_bytes")),
    }
    disturbance = Disturbance(None, None, None, None)
    return Measurement(
        package=f"server-{interface}",
        digest="",
        recipe=f"server:{interface}",
        model=found.model.rpartition("/")[2],
        task="text-generation",
        device=found.endpoint,
        workload=workload,
        samples={
            "tpot_s": paces,
            "ttft_s": tuple(tuple(each.ttft_s for each in part) for part in rounds),
            "latency_s": tuple(tuple(each.latency_s for each in part) for part in rounds),
        },
        summary=summary,
        quality=None,
        environment=_asking(),
        verdict=_judged(paces, disturbance, found.notes),
        disturbance=disturbance,
        absent={name: _ABSENT.get(name, _OUTSIDE) for name, value in summary.items() if value is None},
        measured=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        edgec=__version__,
    )


def _asking() -> Environment:
    """The machine that asked, said so: nobody sees the server's."""
    here = read_environment(1, (), rates=False)
    return replace(here, cpu=f"asked from {here.cpu}")


def _rounds(answers: tuple[Answer, ...]) -> list[tuple[Answer, ...]]:
    """The answers in a few rounds, in the order in which they came, so that drift and spread are seen."""
    count = min(_ROUNDS, len(answers))
    ends = [len(answers) * number // count for number in range(count + 1)]
    return [answers[begin:end] for begin, end in itertools.pairwise(ends)]


def _judged(paces: tuple[tuple[float, ...], ...], disturbance: Disturbance, notes: tuple[str, ...]) -> Validity:
    found = judge(paces, disturbance)
    word = "suspect" if found.word == "valid" else found.word
    return Validity(word, (*found.reasons, _UNWATCHED, *notes))
