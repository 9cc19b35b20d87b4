"""How a decoder is measured: prompt and decode apart."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.kinds.kind import Figures, Outputs, Prepared, Round, Samples, percentile, percentile_ms
from runtimes.session import GenerationSession
from runtimes.verify.metrics import log_softmax
from runtimes.workload import Workload

_COMPARED_TOKENS = 8


def prepare(session: GenerationSession, package: Package, workload: Workload) -> Prepared:
    """A prompt of seeded tokens, the same for all packages of one vocabulary."""
    asked, generated = workload.prompt_tokens, workload.generated_tokens
    if asked is None or generated is None:
        raise UnusableInput(
            "A language model is measured with prompt_tokens and generated_tokens; the workload lacks one."
        )
    needed = asked + generated
    if needed > session.context_length:
        raise UnusableInput(
            f"{package.title} holds {session.context_length} tokens, and the workload needs {needed}. Ask for fewer with "
            "--prompt-tokens and --generated-tokens."
        )
    prompt = np.random.default_rng(0).integers(5, session.vocabulary // 2, needed)[:asked].tolist()

    def timed() -> Round:
        return time_round(session, prompt, generated)

    ran = replace(
        workload,
        sequence_length=None,
        repetitions=None,
        warmup_repetitions=None,
        context_length=session.context_length,
    )
    return Prepared(
        timed, timed, ran, lambda: {"logits": first_logits(session, prompt, min(generated, _COMPARED_TOKENS))}
    )


def first_logits(session: GenerationSession, prompt: list[int], tokens: int) -> NDArray[np.float32]:
    """Logits behind the prompt and behind each of a few seeded tokens, (tokens, vocabulary)."""
    session.reset()
    rows = [session.extend(prompt)]
    rows += [session.extend((prompt[number % len(prompt)],)) for number in range(tokens - 1)]
    return np.stack(rows)


def apart(own: Outputs, other: Outputs) -> float:
    """Mean KL divergence of the distributions of the next token, nats."""
    ours, theirs = (log_softmax(each["logits"]) for each in (own, other))
    return float((np.exp(ours) * (ours - theirs)).sum(1).mean())


def time_round(session: GenerationSession, prompt: list[int], generated_tokens: int) -> Round:
    """Take the prompt, then generate greedily; seconds to the first token and of every token after it."""
    clock = time.perf_counter
    started = clock()
    session.reset()
    token = int(session.extend(prompt).argmax())
    first = clock()
    tokens = []
    before = first
    for _ in range(generated_tokens - 1):
        token = int(session.extend((token,)).argmax())
        now = clock()
        tokens.append(now - before)
        before = now
    return {"ttft_s": [first - started], "tpot_s": tokens}


def summarize(samples: Samples, workload: Workload, package: Package, bandwidth: float | None) -> Figures:
    """Prefill and decode apart; `decode_bandwidth_fraction` is the weights' bytes read per second over what memory gives."""
    every = [value for part in samples["tpot_s"] for value in part]
    ttft = percentile([value for part in samples["ttft_s"] for value in part], 0.5)
    speed = percentile([len(part) / sum(part) for part in samples["tpot_s"]], 0.5)
    read = package.lowered.weights.decode_read_bytes
    assert workload.prompt_tokens is not None
    return {
        "ttft_s": ttft,
        "prefill_tok_per_s": workload.prompt_tokens / ttft,
        "tpot_ms_p50": percentile_ms(every, 0.5),
        "tpot_ms_p90": percentile_ms(every, 0.9),
        "tpot_ms_p99": percentile_ms(every, 0.99),
        "decode_tok_per_s": speed,
        "decode_bandwidth_fraction": speed * read / bandwidth if read is not None and bandwidth else None,
    }
