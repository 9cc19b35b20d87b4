"""generation: decoders, which write text token by token."""

from __future__ import annotations

from compiler.scheme import Scheme
from runtimes.kinds.generation.measure import prepare, summarize
from runtimes.kinds.generation.reference import expect, probe
from runtimes.kinds.generation.use import check, use
from runtimes.kinds.kind import Chart, Column, Kind

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
