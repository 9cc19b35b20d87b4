"""generation: decoders, which write text token by token."""

from __future__ import annotations

from runtimes.kinds.generation.measure import apart, prepare, summarize
from runtimes.kinds.generation.reference import expect, probe
from runtimes.kinds.generation.use import check, use
from runtimes.kinds.kind import Chart, Column, Compared, Grade, Kind, StoredCheck

# Mean KL in nats, and the share of positions with the same most probable token, on edgec's passages (which are harder than
# English prose). A KL of 0.01 is what eight bits cost; at 0.1 every tenth most probable token differs, and texts are as good
# as before; at 1 half of them differ, and texts still hold together; beyond that they do not.
GRADES = (
    Grade("near-lossless", {"max_mean_kl": 0.02, "min_same_top1": 0.9}),
    Grade("good", {"max_mean_kl": 0.1, "min_same_top1": 0.8}),
    Grade("degraded", {"max_mean_kl": 1.0, "min_same_top1": 0.4}),
)

KIND = Kind(
    name="generation",
    title="Language models",
    expect=expect,
    probe=probe,
    grades=GRADES,
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
    stored=StoredCheck(
        "runtimes.kinds.generation.stored:write_stored", "mean KL", factor=2, floor=1e-6, floor_float16=1e-4
    ),
    only_with_text=("perplexity", "reference_perplexity"),
    prepare=prepare,
    apart=apart,
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
    compared=(Compared("mean_kl", 1e-3), Compared("same_top1", 1e-2, from_one=True)),
    chart=Chart(
        models="language models",
        time=("tpot_ms_p50", "ms per token (median)"),
        distance=("mean_kl", "mean KL to the fp32 model, nats"),
        samples=("tpot_s", "Time per token"),
    ),
    check=check,
    use=use,
)
