"""generation: decoders, which write text token by token."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler import corpus
from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Shapes
from compiler.scheme import Scheme
from compiler.stages.worker import report_progress
from runtimes.kinds.kind import (
    Chart,
    Column,
    Expectation,
    Figures,
    Findings,
    Kind,
    Outcome,
    Prepared,
    Request,
    Round,
    Samples,
    percentile,
    percentile_ms,
)
from runtimes.session import GenerationSession
from runtimes.verify.metrics import Step, greedy_agreement, join_distances, measure_logits, perplexity
from runtimes.verify.strings import chat_misses, render_chats, string_misses
from runtimes.workload import Workload

WINDOW_TOKENS = 512
NEW_TOKENS = 32


def expect(model: Model, shapes: Shapes, text: str | None, max_tokens: int) -> Expectation:
    """The Reference scores windows that the model and a package of these shapes can hold."""
    limits = (WINDOW_TOKENS, model.geometry.context_length, shapes.context_length)
    arguments = {
        "window_tokens": min(length for length in limits if length),
        "max_tokens": max_tokens,
        "new_tokens": NEW_TOKENS,
        "text": text,
        "task": model.task,
    }
    return Expectation(
        f"{__name__}:write_expected", arguments, ("torch", "transformers", "tokenizers", "jinja2", "numpy")
    )


def write_expected(
    model: str, out: str, text: str | None, window_tokens: int, max_tokens: int, new_tokens: int, task: str
) -> None:
    """Write what the Reference says: `expected.json` and one `window-N.npy` a window, float32 (tokens, vocabulary).

    The first `max_tokens` of a text are scored in windows of `window_tokens`, second halves only, as llama.cpp's perplexity
    tool does; without a text the project's passages, each from its start. A model that begins its texts with a token gets it
    everywhere; in the windows of a text it takes the first token's place, as in that tool.
    """
    from compiler.tokenizer import end_of_text_ids, load_tokenizer, start_of_text_ids

    folder = Path(model)
    tokenizer = load_tokenizer(folder)
    start = start_of_text_ids(tokenizer)

    def encode(string: str) -> list[int]:
        return list(tokenizer.encode(string, add_special_tokens=False))

    if text is None:
        texts = [ids for ids in (encode(passage) for passage in corpus.PASSAGES) if ids]
        windows = [[*start, *ids][:window_tokens] for ids in texts]
        first_scored = 0
    else:
        ids = encode(text)[:max_tokens]
        windows = [ids[at : at + window_tokens] for at in range(0, len(ids), window_tokens)]
        windows = [[*start, *window[len(start) :]] for window in windows if len(window) == window_tokens]
        first_scored = window_tokens // 2
        if not windows:
            raise UnusableInput(
                f"The text has {len(ids)} tokens, and one window takes {window_tokens}. Give a longer text."
            )
    prompts = [[*start, *ids] for ids in (encode(prompt) for prompt in corpus.PROMPTS) if ids]
    continuations = _answers(folder, task, windows, prompts, new_tokens, first_scored, Path(out))
    expected = {
        "windows": windows,
        "first_scored": first_scored,
        "prompts": prompts,
        "continuations": [[astuple(step) for step in steps] for steps in continuations],
        "strings": [[string, encode(string)] for string in corpus.nasty_strings(tokenizer.all_special_tokens)],
        "chats": render_chats(tokenizer),
        "start_of_text_ids": start,
        "end_of_text_ids": sorted(end_of_text_ids(folder)),
    }
    (Path(out) / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _answers(
    folder: Path,
    task: str,
    windows: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    first_scored: int,
    out: Path,
) -> list[list[Step]]:
    """Write the logits of every window from `first_scored` on; the greedy continuations, which no end of text stops."""
    import torch

    from compiler.pretrained import load_pretrained

    model = load_pretrained(folder, task)
    total = len(windows) + len(prompts)
    continuations = []
    with torch.inference_mode():
        for number, window in enumerate(windows):
            logits = model(torch.tensor([list(window)]), use_cache=False).logits[0, first_scored:]
            np.save(out / f"window-{number}.npy", logits.float().numpy())
            report_progress(number + 1, total)
        for number, prompt in enumerate(prompts):
            cache = None
            tokens = torch.tensor([list(prompt)])
            steps: list[Step] = []
            for _ in range(new_tokens):
                answer = model(tokens, past_key_values=cache, use_cache=True)
                cache = answer.past_key_values
                best = answer.logits[0, -1].float().topk(2)
                first, second = best.indices.tolist()
                steps.append(Step(first, second, float(best.values[0] - best.values[1])))
                tokens = torch.tensor([[first]])
            continuations.append(steps)
            report_progress(len(windows) + number + 1, total)
    return continuations


def probe(
    session: GenerationSession, package: Package, expected: Path, on_progress: Callable[[int, int], None]
) -> Findings:
    """Score the windows, continue the prompts and tokenize the strings."""
    told = read_object(expected / "expected.json")
    first = told["first_scored"]
    parts = []
    total = len(told["windows"]) + len(told["prompts"])
    for number, window in enumerate(told["windows"]):
        reference = np.load(expected / f"window-{number}.npy", mmap_mode="r")
        following = np.asarray([*window[1:], -1], np.int64)[first:]
        parts.append(measure_logits(reference, session.score(window)[first:], following))
        on_progress(number + 1, total)
    agreed = counted = 0
    for number, (prompt, continuation) in enumerate(zip(told["prompts"], told["continuations"], strict=True)):
        steps = [Step(*step) for step in continuation]
        new = [token for _, token in zip(steps, greedy_tokens(session, prompt), strict=False)]
        same, of = greedy_agreement(steps, new)
        agreed, counted = agreed + same, counted + of
        on_progress(len(told["windows"]) + number + 1, total)
    distances = join_distances(parts)
    figures: Figures = {
        "positions": len(distances.kl),
        "mean_kl": float(distances.kl.mean()),
        "p90_kl": float(np.quantile(distances.kl, 0.9)),
        "p99_kl": float(np.quantile(distances.kl, 0.99)),
        "same_top1": float(distances.same.mean()),
        "perplexity": perplexity(distances.loss),
        "reference_perplexity": perplexity(distances.reference_loss),
        "greedy_agreement": agreed / counted if counted else 1.0,
    }
    return Findings(figures, tuple(text_misses(session, told)))


def text_misses(session: GenerationSession, told: dict[str, Any]) -> list[str]:
    """Sentences about each string, conversation, begin or end token on which the runtime and Hugging Face differ."""
    text = session.text
    misses = [*string_misses(text.encode, told["strings"]), *chat_misses(text.render_chat, told["chats"])]
    if list(text.begin) != told["start_of_text_ids"]:
        misses.append(
            f"start of text: the runtime begins with {list(text.begin)}, Hugging Face with {told['start_of_text_ids']}"
        )
    if absent := set(told["end_of_text_ids"]) - text.ends:
        misses.append(f"end of text: the runtime does not end at the token {min(absent)}")
    return misses


# Scheme: mean KL in nats, share of positions with the same most probable token, share of greedy tokens that agree. Set above
# what good packages show and far below what a wrong graph, a swapped tensor or a lost mask causes.
_LIMITS: dict[str, tuple[float, float, float | None]] = {
    "fp32": (1e-6, 0.995, 0.95), "F32": (1e-4, 0.99, 0.9), "fp16": (5e-4, 0.98, 0.8), "F16": (5e-4, 0.98, 0.8),
    "bf16": (5e-3, 0.95, None), "BF16": (5e-3, 0.95, None), "int8": (0.02, 0.85, None), "w8a8": (0.05, 0.75, None),
    "Q8_0": (0.02, 0.92, None), "Q6_K": (0.06, 0.82, None), "Q5_K_M": (0.15, 0.70, None), "Q5_K_S": (0.15, 0.70, None),
    "Q5_1": (0.25, 0.62, None), "Q5_0": (0.25, 0.62, None), "Q4_K_M": (0.35, 0.55, None), "Q4_K_S": (0.40, 0.52, None),
    "Q4_1": (0.80, 0.45, None), "Q4_0": (0.90, 0.40, None), "Q3_K_L": (0.60, 0.55, None), "Q3_K_M": (0.80, 0.50, None),
    "Q3_K_S": (1.20, 0.45, None), "Q2_K": (3.00, 0.20, None), "Q2_K_S": (3.00, 0.20, None),
}  # fmt: skip


def limits(scheme: Scheme) -> dict[str, float]:
    """The limits of a scheme; GPTQ must be well below rounding. KeyError for a scheme without limits."""
    if not scheme.method:
        kl, same, greedy = _LIMITS[scheme.name]
    elif scheme.method == "lut":
        # Without a scale for each group of columns, palettes of few values are far off unless calibrated.
        kl, same, greedy = (0.1, 0.7, None) if scheme.code_bits == 6 else (1.5, 0.3, None)
    else:
        kl, same = {8: (0.03, 0.85), 4: (1.0, 0.38), 3: (3.0, 0.1), 2: (12.0, 0.0)}[scheme.code_bits or 4]
        coarse, greedy = 1.0 if scheme.block == 32 else 1.8, None
        gptq = scheme.method == "gptq" and scheme.code_bits < 8
        kl, same = kl * coarse * (0.4 if gptq else 1.0), min(1.0, same * 1.2) if gptq else same / coarse
    found = {"max_mean_kl": kl, "min_same_top1": same}
    return found if greedy is None else {**found, "min_greedy_agreement": greedy}


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
            f"{package.name} holds {session.context_length} tokens, and the workload needs {needed}. Ask for fewer with "
            "--prompt-tokens and --generated-tokens."
        )
    prompt = np.random.default_rng(0).integers(5, session.vocabulary // 2, needed)[:asked].tolist()

    def timed() -> Round:
        return time_round(session, prompt, generated)

    ran = replace(workload, sequence_length=None, repetitions=None, warmup_repetitions=None)
    return Prepared(timed, timed, ran)


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


def greedy_tokens(session: GenerationSession, prompt: Sequence[int]) -> Iterator[int]:
    """The most probable token after the prompt, and after each that came, without end; ends of text do not stop it."""
    session.reset()
    token = int(session.extend(prompt).argmax())
    while True:
        yield token
        token = int(session.extend((token,)).argmax())


@dataclass(frozen=True)
class Generated:
    """A generated text; `seconds` counts from the prompt's first token to the last new one."""

    text: str
    new_tokens: int
    seconds: float


def generate(
    session: GenerationSession,
    prompt: str,
    max_tokens: int,
    *,
    chat: bool = True,
    on_text: Callable[[str], None] = lambda text: None,
) -> Generated:
    """Continue `prompt` greedily until an end of text or `max_tokens`.

    With `chat` the prompt goes into the package's chat template, when it has one. `on_text` is given each new piece of text as
    soon as it is whole characters.

    Raises:
        UnusableInput: the prompt does not fit the context.
    """
    text = session.text
    rendered = text.render_chat([{"role": "user", "content": prompt}]) if chat else None
    # A chat template writes the begin token itself.
    ids = text.encode(rendered) if rendered is not None else [*text.begin, *text.encode(prompt)]
    room = session.context_length - len(ids)
    if not ids or room < 1:
        raise UnusableInput(f"The prompt has {len(ids)} tokens; the package takes 1 to {session.context_length - 1}.")
    ends = text.ends
    started = time.perf_counter()
    new: list[int] = []
    shown = ""
    for _, token in zip(range(min(max_tokens, room)), greedy_tokens(session, ids), strict=False):
        if token in ends:
            break
        new.append(token)
        so_far = text.decode(new)
        if not so_far.endswith("\ufffd"):
            on_text(so_far[len(shown) :])
            shown = so_far
    return Generated(text.decode(new) if new else "", len(new), time.perf_counter() - started)


def check(package: Package, request: Request) -> None:
    """A language model takes prompts and nothing else."""
    for name, given in (("pictures", request.image), ("passage", request.passage)):
        if given is not None:
            raise UnusableInput(f"This package is for {package.model.task} and takes no {name}. Use --prompt TEXT.")
    if not request.prompts:
        raise UnusableInput("There is nothing to run on. Add --prompt TEXT.")


def use(package: Package, session: GenerationSession, request: Request) -> Outcome:
    """Continue each prompt."""
    answers = []
    for prompt in request.prompts:
        made = generate(session, prompt, request.max_tokens, chat=request.chat, on_text=request.tell)
        answers.append({"prompt": prompt, "text": made.text, "new_tokens": made.new_tokens})
        request.tell("\n")
        speed = f"{made.new_tokens / made.seconds:.1f} tok/s with the prompt" if request.timed else "evaluated"
        request.note(f"[{made.new_tokens} tokens, {speed}]")
    return Outcome(answers, " ".join(str(answers[0]["text"]).split()))


KIND = Kind(
    name="generation",
    title="Language models",
    expect=expect,
    probe=probe,
    limits=limits,
    limited={
        "max_mean_kl": "mean_kl",
        "max_p90_kl": "p90_kl",
        "max_p99_kl": "p99_kl",
        "min_same_top1": "same_top1",
        "min_greedy_agreement": "greedy_agreement",
    },
    figures=(
        Column("mean_kl", "mean KL", 4),
        Column("p90_kl", "p90 KL", 4),
        Column("p99_kl", "p99 KL", 4),
        Column("same_top1", "same top-1", 4),
        Column("greedy_agreement", "greedy agreement", 3),
        Column("perplexity", "perplexity", 3),
        Column("reference_perplexity", "fp32 perplexity", 3),
    ),
    only_with_text=("perplexity", "reference_perplexity"),
    prepare=prepare,
    timed=(("tpot", "tpot_s"), ("ttft", "ttft_s")),
    summarize=summarize,
    speed=(
        Column("ttft_s", "TTFT s", 3),
        Column("prefill_tok_per_s", "prefill tok/s", 0),
        Column("tpot_ms_p50", "TPOT ms p50", 2),
        Column("tpot_ms_p90", "p90", 2),
        Column("tpot_ms_p99", "p99", 2),
        Column("decode_tok_per_s", "decode tok/s", 1),
        Column("decode_bandwidth_fraction", "share of bandwidth", 2),
    ),
    compared=(("mean_kl", 1e-3),),
    chart=Chart(
        models="language models",
        time=("tpot_ms_p50", "ms per token (median)"),
        distance=("mean_kl", "mean KL to the fp32 model, nats"),
        samples=("tpot_s", "Time per token"),
    ),
    check=check,
    use=use,
)
