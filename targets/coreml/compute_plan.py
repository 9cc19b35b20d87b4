"""Where the operators of a package run: as macOS itself plans it, elsewhere as the table predicts.

`read_compute_plan` needs a Mac and is not run by edgec's own tests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from compiler.package import Placement, UnsupportedOperator
from targets.coreml.placement import ENGINE, predict_placement


def place_packages(folders: Sequence[Path], engine: str = ENGINE) -> Placement:
    """The placement of a package in one or several parts, each an .mlpackage, on `ane`."""
    assert engine == ENGINE
    place = read_compute_plan if sys.platform == "darwin" else predict_placement
    parts = [place(folder) for folder in folders]
    return Placement(
        parts[0].engine,
        parts[0].source,
        sum(each.operators for each in parts),
        tuple(operator for each in parts for operator in each.unsupported),
        tuple(operator for each in parts for operator in each.unsure),
        sum(each.result_bytes for each in parts),
        sum(each.padded_bytes for each in parts),
    )


def read_compute_plan(folder: Path) -> Placement:
    """The placement of an .mlpackage by `MLComputePlan` (macOS 14.4 or newer)."""
    import coremltools
    from coremltools.models.compute_device import MLNeuralEngineComputeDevice
    from coremltools.models.compute_plan import MLComputePlan

    compiled = coremltools.models.utils.compile_model(str(folder))
    plan = MLComputePlan.load_from_path(path=compiled, compute_units=coremltools.ComputeUnit.ALL)
    total, unsupported = 0, []
    for name, function in sorted(plan.model_structure.program.functions.items()):
        for operation in function.block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:
                continue
            total += 1
            device = usage.preferred_compute_device
            if not isinstance(device, MLNeuralEngineComputeDevice):
                title = f"{name}/{operation.outputs[0].name if operation.outputs else operation.operator_name}"
                unsupported.append(
                    UnsupportedOperator(operation.operator_name, title, f"planned for {type(device).__name__}")
                )
    return Placement("ane", "planned", total, tuple(unsupported))
