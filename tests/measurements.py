"""Measurements made up for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from benchmarks.agent.environment import Environment
from benchmarks.measurement import Measurement
from benchmarks.validity import Disturbance, Validity
from runtimes.verify.verification import Verification
from runtimes.workload import Workload

ENVIRONMENT = Environment(
    "x86_64", "a CPU", 1, 2, None, None, None, 8 * 10**9, 6 * 10**9, 1e10, "Linux", "3.11", {"x": "1"},
    {"governor": "none", "frequency_mhz": "none", "temperature_c": "none"},
)  # fmt: skip


def found(figures: Any) -> Verification:
    """What verify found of a good package."""
    return Verification("0" * 64, True, True, "near-lossless", "degraded", {}, "edgec passages", figures)


def measurement(samples: Any, summary: Any, figures: Any, **changes: Any) -> Measurement:
    """One of an encoder, valid and verified."""
    fields: dict[str, Any] = {
        "package": "p",
        "digest": "0" * 64,
        "recipe": "onnx:int8",
        "model": "m",
        "task": "feature-extraction",
        "device": "local",
        "workload": Workload(),
        "samples": samples,
        "summary": summary,
        "quality": found(figures),
        "environment": ENVIRONMENT,
        "verdict": Validity("valid", ()),
        "disturbance": Disturbance(0.0, 0.0, 0, None),
        "absent": {},
        "measured": "2026-11-28 12:00",
        "edgec": "0.1.0",
    }
    return Measurement(**{**fields, **changes})
