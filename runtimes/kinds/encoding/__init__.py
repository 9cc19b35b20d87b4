"""encoding: encoders of texts and pictures, functions from tensors to tensors."""

from __future__ import annotations

from runtimes.kinds.encoding.measure import prepare
from runtimes.kinds.encoding.reference import expect, probe
from runtimes.kinds.encoding.use import check, use
from runtimes.kinds.encoding.whole_batches import in_whole_batches
from runtimes.kinds.kind import Chart, Kind, StoredCheck
from runtimes.kinds.outputs import COMPARED, FIGURES, GRADES, LIMITED, SPEED, summarize

KIND = Kind(
    name="encoding",
    title="Encoders",
    expect=expect,
    probe=probe,
    grades=GRADES,
    limited=LIMITED,
    figures=FIGURES,
    prepare=prepare,
    timed=(("latency", "latency_s"),),
    summarize=summarize,
    speed=SPEED,
    compared=COMPARED,
    chart=Chart(
        models="encoders",
        time=("latency_ms_p50", "ms per run (median)"),
        distance=("mean_cosine", "1 - mean cosine to the fp32 model"),
        samples=("latency_s", "Time per run"),
        from_one=True,
    ),
    check=check,
    use=use,
    wrap=in_whole_batches,
    stored=StoredCheck(
        "runtimes.kinds.encoding.stored:write_stored", "relative error", factor=2, floor=1e-3, floor_float16=5e-3
    ),
)
