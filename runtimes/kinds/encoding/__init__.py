"""encoding: encoders of texts and pictures, functions from tensors to tensors."""

from __future__ import annotations

from runtimes.kinds.encoding.measure import prepare, reference_outputs
from runtimes.kinds.encoding.reference import expect, probe
from runtimes.kinds.encoding.use import check, use
from runtimes.kinds.encoding.whole_batches import in_whole_batches
from runtimes.kinds.kind import Kind, StoredCheck
from runtimes.kinds.outputs import COMPARED, FIGURES, GRADES, LIMITED, SPEED, TIMED, apart, chart_of, summarize

KIND = Kind(
    name="encoding",
    title="Encoders",
    expect=expect,
    probe=probe,
    grades=GRADES,
    limited=LIMITED,
    figures=FIGURES,
    prepare=prepare,
    apart=apart,
    timed=TIMED,
    summarize=summarize,
    speed=SPEED,
    compared=COMPARED,
    chart=chart_of("encoders"),
    check=check,
    use=use,
    wrap=in_whole_batches,
    reference=reference_outputs,
    stored=StoredCheck(
        "runtimes.kinds.encoding.stored:write_stored", "relative error", factor=2, floor=1e-3, floor_float16=5e-3
    ),
)
