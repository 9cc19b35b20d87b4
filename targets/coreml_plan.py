"""Where macOS itself would run a package's operators. Needs a Mac; not run by edgec's own tests."""

from __future__ import annotations

from pathlib import Path

from compiler.package import Departure, Placement


def plan_placement(folder: Path) -> Placement:
    """The placement of an .mlpackage by `MLComputePlan` (macOS 14.4 or newer)."""
    import coremltools
    from coremltools.models.compute_device import MLNeuralEngineComputeDevice
    from coremltools.models.compute_plan import MLComputePlan

    compiled = coremltools.models.utils.compile_model(str(folder))
    plan = MLComputePlan.load_from_path(path=compiled, compute_units=coremltools.ComputeUnit.ALL)
    total, departures = 0, []
    for name, function in plan.model_structure.program.functions.items():
        for operation in function.block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:
                continue
            total += 1
            device = usage.preferred_compute_device
            if not isinstance(device, MLNeuralEngineComputeDevice):
                title = f"{name}/{operation.outputs[0].name if operation.outputs else operation.operator_name}"
                departures.append(Departure(operation.operator_name, title, f"planned for {type(device).__name__}"))
    return Placement("ane", "planned", total, tuple(departures))
