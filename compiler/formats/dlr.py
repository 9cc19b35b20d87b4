"""What the `.meta` file beside a model that SageMaker Neo compiled tells of it: neo-ai/neo-ai-dlr 457aabf, dlr_common.cc."""

from __future__ import annotations

import json
from pathlib import Path

_DEVICES = ("cpu", "gpu", "opencl")
_MOST_BYTES = 1 << 24


def device_of(folder: Path) -> str:
    """cpu, gpu or opencl: DLR opens the model for no other. cpu where the file tells nothing."""
    for file in sorted(folder.glob("*.meta"))[:1]:
        try:
            told = str(json.loads(file.read_bytes()[:_MOST_BYTES])["Requirements"]["TargetDeviceType"]).lower()
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if told in _DEVICES:
            return told
    return _DEVICES[0]
