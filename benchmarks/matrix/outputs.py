"""What a matrix leaves: `cells.jsonl`, `cells.parquet`, `results.jsonl` for `edgec compare`, and `report.html`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.matrix.cell import Result
from benchmarks.measurement import write_measurements
from benchmarks.report.fleet import fleet_sections
from benchmarks.report.page import write_page
from compiler.output_file import write_output


def row_of(result: Result) -> dict[str, Any]:
    """A cell as one flat row; what is not known is null."""
    found = result.measurement
    predicted = found.predicted if found else None
    return {
        "model": result.cell.model,
        "model_name": found.model if found else result.cell.model.rpartition("/")[2],
        "recipe": result.cell.recipe,
        "device": result.cell.device,
        "status": result.status,
        "reason": result.reason,
        "package": result.package,
        "verdict": found.verdict.word if found else None,
        "emulated": found.is_emulated if found else None,
        "computes_the_same": result.agreement.passed if result.agreement else None,
        "distance": result.agreement.distance if result.agreement else None,
        "most_distance": result.agreement.limit if result.agreement else None,
        "quality": found.quality.quality if found and found.quality else None,
        "ttft_s": found.figure("ttft_s") if found else None,
        "decode_tok_per_s": found.figure("decode_tok_per_s") if found else None,
        "latency_ms_p50": found.figure("latency_ms_p50") if found else None,
        "peak_rss_bytes": found.figure("peak_rss_bytes") if found else None,
        "package_bytes": found.figure("package_bytes") if found else None,
        "predicted_package_bytes": predicted.package_bytes if predicted else None,
        "predicted_peak_rss_bytes": predicted.memory_bytes if predicted else None,
        "predicted_tok_per_s": predicted.tok_per_s if predicted else None,
        "predicted_ttft_s": predicted.ttft_s if predicted else None,
        "predicted_latency_ms": predicted.latency_s * 1e3 if predicted and predicted.latency_s else None,
        "seconds": result.seconds,
    }


def write_outputs(out: Path, results: Sequence[Result]) -> None:
    """Write all four; where nothing was measured, an earlier run's result file and report go."""
    rows = [row_of(result) for result in results]
    write_output(out / "cells.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _write_parquet(out / "cells.parquet", rows)
    measured = [result.measurement for result in results if result.measurement is not None]
    if measured:
        write_measurements(out / "results.jsonl", measured)
        write_page(out / "report.html", measured, fleet_sections(rows))
    else:
        for name in ("results.jsonl", "report.html"):
            (out / name).unlink(missing_ok=True)


def _write_parquet(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = ("model", "model_name", "recipe", "device", "status", "reason", "package", "verdict", "quality")
    flags = ("emulated", "computes_the_same")
    kinds = {name: pyarrow.string() for name in texts} | {name: pyarrow.bool_() for name in flags}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in rows[0]])
    floats = [
        {name: float(value) if name not in kinds and value is not None else value for name, value in row.items()}
        for row in rows
    ]
    part = file.with_suffix(".part")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(floats, schema=schema), part)
    part.replace(file)
