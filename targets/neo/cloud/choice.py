"""Which framework, version and options a model is sent to Neo with, and what Neo has for a model."""

from __future__ import annotations

from compiler.model import Model, is_convolutional
from compiler.networks.families import refuse_network
from targets.neo.cloud.job import CompilationJob, TargetPlatform
from targets.neo.cloud.tables import DEVICES, EDGE, INSTANCES, PLATFORMS, Framework, find_device

_CNN, _VIT, _TEXT = "image classification", "Vision Transformer", "Hugging Face"
# Targets whose converters take other archives, inputs or results than those that are made and looked at here.
# Inferentia's PyTorch reads TorchScript files of up to version 6, and today's writes 10.
_OTHERS = (
    "coreml",
    "ml_inf1",
    "amba_cv2",
    "amba_cv22",
    "amba_cv25",
    "jacinto_tda4vm",
    "sitara_am57x",
    "x86_win32",
    "x86_win64",
)
_JETSON = {
    "jetson_nano": {"gpu-code": "sm_53", "trt-ver": "5.0.6", "cuda-ver": "10.0"},
    "jetson_tx1": {"gpu-code": "sm_53", "trt-ver": "6.0.1", "cuda-ver": "10.0"},
    "jetson_tx2": {"gpu-code": "sm_62", "trt-ver": "6.0.1", "cuda-ver": "10.0"},
    "jetson_xavier": {"gpu-code": "sm_72", "trt-ver": "5.1.6", "cuda-ver": "10.0"},
}
_OPTIONS: dict[str, dict[str, object]] = {
    **{name: dict(options) for name, options in _JETSON.items()},
    "rasp3b": {"mattr": ["+neon"]},
    "sbe_c": {"mcpu": "core-avx2"},
    "qcs605": {"ANDROID_PLATFORM": 27},
    "qcs603": {"ANDROID_PLATFORM": 27},
}


def _platform_name(system: str, architecture: str, accelerator: str) -> str:
    return "-".join(part.lower() for part in (system, architecture, accelerator) if part)


# A TargetPlatform by the name of its variant, such as linux-arm64-mali. What has an NVIDIA accelerator needs options that
# only who has the board knows, so those devices alone are taken that have a name.
_PLATFORMS = {
    _platform_name(system, architecture, accelerator): TargetPlatform(system, architecture, accelerator)
    for (system, accelerator), architectures in PLATFORMS.items()
    for architecture in architectures
    if accelerator != "NVIDIA"
}
VARIANTS = (*(device.name for device in DEVICES if device.name not in _OTHERS), *_PLATFORMS)


def kind_of(model: Model) -> str:
    """What Neo's tables call such a model."""
    if model.takes != "image":
        return _TEXT
    # A network of stages is convolutional; every other is a transformer (compiler/model.py).
    return _CNN if is_convolutional(model.config) else _VIT


def _framework(variant: str, kind: str) -> str:
    """What a kind of model is sent as.

    ONNX of 1.7 has no operators for transformers; boards read PyTorch of 1.8, which no longer writes what it read. Of what
    the cloud's instances compile, AWS has a container for PyTorch's.
    """
    return "ONNX" if kind == _CNN and _rows(variant) is not INSTANCES else "PYTORCH"


def _rows(variant: str) -> tuple[Framework, ...]:
    device = find_device(variant)
    return device.frameworks if device is not None else EDGE


def _fitting(variant: str, kind: str) -> list[Framework]:
    name = _framework(variant, kind)
    return [row for row in _rows(variant) if kind in row.models and row.name == name]


def refuse(variant: str, model: Model) -> str | None:
    """Why Neo does not compile a model for a variant; None when its tables say that it does."""
    kind, rows = kind_of(model), _rows(variant)
    if not _fitting(variant, kind):
        taken = sorted({each for row in rows for each in row.models})
        others = [f"@{device.name}" for device in DEVICES if device.name in VARIANTS and _fitting(device.name, kind)]
        also = f" They have it for {', '.join(others)}." if others else ""
        return (
            f"SageMaker Neo's tables have for {variant}: {', '.join(taken)}; and {model.name} is what they call {kind}.{also} "
            "@local compiles it here."
        )
    if kind != _CNN and (reason := refuse_network(model)):
        return f"what is sent to Neo is edgec's own network, and {reason}"
    return None


def choose(variant: str, model: Model) -> CompilationJob:
    """The newest framework that suits; its inputs are still to be told."""
    kind = kind_of(model)
    framework = _framework(variant, kind)
    rows = _fitting(variant, kind)
    device = find_device(variant)
    version = rows[-1].versions[-1] if framework == "PYTORCH" else None
    options = dict(_OPTIONS.get(variant, {}))
    platform = _PLATFORMS.get(variant)
    if platform is not None and platform.system == "ANDROID":
        options["ANDROID_PLATFORM"] = 29 if platform.architecture == "ARM64" else 25
    if platform is not None and platform.architecture in ("ARM_EABI", "ARM_EABIHF"):
        options["mattr"] = ["+neon"]
    if framework == "PYTORCH" and kind == _TEXT:
        options["dtype"] = "int64"
    if platform is not None:
        return CompilationJob(framework, version, {}, platform=platform, options=options or None)
    assert device is not None
    return CompilationJob(framework, version, {}, device=device.name, options=options or None)
