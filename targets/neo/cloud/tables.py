"""What SageMaker Neo takes, as AWS has published it; each table with its source and date.

Sources: [API] botocore's service model of SageMaker, 2026-05; [EDGE] the developer guide's pages
neo-supported-devices-edge-devices and -frameworks (2022-10, of the devices a copy later than 2024-12); [CLOUD]
neo-supported-cloud, the same copy; [LOADER] neo-ai/neo-loader 06788c0 (2022-08), AWS's own reader of archives.
"""

from __future__ import annotations

from dataclasses import dataclass

FRAMEWORKS = ("TENSORFLOW", "KERAS", "MXNET", "ONNX", "PYTORCH", "XGBOOST", "TFLITE", "DARKNET", "SKLEARN")  # [API]
SYSTEMS, ACCELERATORS = ("LINUX", "ANDROID"), ("INTEL_GRAPHICS", "MALI", "NVIDIA", "NNA")  # [API]
ARCHITECTURES = ("X86_64", "X86", "ARM64", "ARM_EABI", "ARM_EABIHF")  # [API]


@dataclass(frozen=True)
class Framework:
    """A framework as a group of targets takes it.

    Attributes:
        name: as the API has it.
        versions: that can be asked for.
        models: what it may be a model of.
    """

    name: str
    versions: tuple[str, ...]
    models: tuple[str, ...]


_IMAGES, _OBJECTS, _TREES = "image classification", "object detection", "decision trees"
_VIT, _TEXT = "Vision Transformer", "Hugging Face"
_MXNET = (_IMAGES, _OBJECTS, "semantic segmentation", "pose estimation", "activity recognition")

EDGE = (  # [EDGE]
    Framework("MXNET", ("1.8",), _MXNET),
    Framework("ONNX", ("1.7",), (_IMAGES, "SVM")),
    Framework("KERAS", ("2.2",), (_IMAGES,)),
    Framework("PYTORCH", ("1.7", "1.8"), (_IMAGES, _OBJECTS)),
    Framework("TENSORFLOW", ("1.15", "2.4"), (_IMAGES, _OBJECTS)),
    Framework("TFLITE", ("1.15",), (_IMAGES, _OBJECTS)),
    Framework("XGBOOST", ("1.3",), (_TREES,)),
    Framework("DARKNET", (), (_IMAGES, _OBJECTS)),
)
INSTANCES = (  # [CLOUD]
    Framework("MXNET", ("1.8.0",), _MXNET),
    Framework("ONNX", ("1.7.0",), (_IMAGES, "SVM")),
    Framework("KERAS", ("2.2.4",), (_IMAGES,)),
    Framework("PYTORCH", ("1.4", "1.5", "1.6", "1.7", "1.8", "1.12"), (_IMAGES,)),
    Framework("PYTORCH", ("1.13", "2.0"), (_IMAGES, _OBJECTS, _VIT, _TEXT)),
    Framework("TENSORFLOW", ("1.15.3", "2.9"), (_IMAGES,)),
    Framework("XGBOOST", ("1.3.3",), (_TREES,)),
)
INFERENTIA1 = (  # [CLOUD]
    Framework("MXNET", ("1.5", "1.8"), (_IMAGES,)),
    Framework("PYTORCH", ("1.7", "1.8", "1.9"), (_IMAGES,)),
    Framework("TENSORFLOW", ("1.15", "2.5"), (_IMAGES,)),
)


@dataclass(frozen=True)
class Device:
    """A TargetDevice.

    Attributes:
        name: as the API has it.
        system, architecture, accelerator: as the page tells; empty where it tells nothing.
        frameworks: what it takes; empty where none is published.
        versioned: whether FrameworkVersion may be given for PyTorch and TensorFlow.
        elf: the machines that a library which comes back may be for, as ELF numbers them; none where no page tells.
    """

    name: str
    system: str
    architecture: str
    accelerator: str = ""
    frameworks: tuple[Framework, ...] = EDGE
    versioned: bool = True
    elf: tuple[int, ...] = ()


_X86_64, _AARCH64, _ARM = 62, 183, 40
_LINUX = "Linux"
DEVICES = (  # [EDGE]; which of them take a version: sagemaker-python-sdk v2.257.6, model.py
    *(Device(name, _LINUX, "X86_64", frameworks=INSTANCES, elf=(_X86_64,)) for name in ("ml_c4", "ml_c5", "ml_m4", "ml_m5")),
    *(Device(name, _LINUX, "X86_64", "NVIDIA", INSTANCES, elf=(_X86_64,)) for name in ("ml_p2", "ml_p3", "ml_g4dn")),
    Device("ml_inf1", _LINUX, "X86_64", "Inferentia", INFERENTIA1, elf=(_X86_64,)),
    Device("aisage", _LINUX, "ARM64", "Mali", elf=(_AARCH64,)),
    *(Device(name, "Arch Linux", "ARM64", "cvflow", versioned=False) for name in ("amba_cv2", "amba_cv22", "amba_cv25")),
    Device("coreml", "iOS, macOS", "", versioned=False),
    Device("imx8qm", _LINUX, "ARM64", elf=(_AARCH64,)),
    Device("imx8mplus", _LINUX, "ARM64", "NPU", versioned=False, elf=(_AARCH64,)),
    Device("jacinto_tda4vm", _LINUX, "ARM", "TDA4VM", versioned=False),
    *(Device(name, _LINUX, "ARM64", "NVIDIA", elf=(_AARCH64,))
      for name in ("jetson_nano", "jetson_tx1", "jetson_tx2", "jetson_xavier")),
    *(Device(name, "Android", "ARM64", "Mali", elf=(_AARCH64,)) for name in ("qcs605", "qcs603")),
    Device("rasp3b", _LINUX, "ARM_EABIHF", elf=(_ARM,)),
    # Its row has no system and no architecture; the board runs systems of both widths.
    Device("rasp4b", "", "", elf=(_AARCH64, _ARM)),
    Device("rk3288", _LINUX, "ARM_EABIHF", "Mali", elf=(_ARM,)),
    Device("rk3399", _LINUX, "ARM64", "Mali", elf=(_AARCH64,)),
    Device("sbe_c", _LINUX, "X86_64", elf=(_X86_64,)),
    Device("sitara_am57x", _LINUX, "ARM64", "EVE, C66x", versioned=False),
    *(Device(name, "Windows 10", "X86_32") for name in ("x86_win32", "x86_win64")),
)  # fmt: skip
# Values of the API that no page has a table for; Elastic Inference is gone.
UNPUBLISHED = ("lambda", "ml_m6g", "ml_c6g", "ml_inf2", "ml_trn1", "ml_eia2", "deeplens")

# Which architectures an Os has for an accelerator; "" without one. [EDGE], later copy.
PLATFORMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("LINUX", ""): ("X86_64", "ARM64", "ARM_EABIHF", "ARM_EABI"),
    ("LINUX", "NVIDIA"): ("X86_64", "ARM64"),
    ("LINUX", "INTEL_GRAPHICS"): ("X86_64",),
    ("LINUX", "MALI"): ("ARM64", "ARM_EABIHF", "ARM_EABI"),
    ("ANDROID", ""): ("X86_64", "X86", "ARM64", "ARM_EABI"),
    ("ANDROID", "INTEL_GRAPHICS"): ("X86_64", "X86"),
    ("ANDROID", "MALI"): ("ARM64", "ARM_EABI"),
}
ELF_OF = {"X86_64": _X86_64, "X86": 3, "ARM64": _AARCH64, "ARM_EABI": _ARM, "ARM_EABIHF": _ARM}
# The ONNX of 1.7: (IR version, opset). [LOADER]
ONNX_IR, ONNX_OPSET = 7, 12
# The largest version of a TorchScript file that a PyTorch reads (torch/csrc: kMaxSupportedFileFormatVersion). Neo's 1.9
# refused 10 in aws-neuron-sdk#743.
TORCHSCRIPT_VERSIONS = {"1.7": 6, "1.8": 6, "1.9": 6, "1.12": 10, "1.13": 10, "2.0": 10}


def find_device(name: str) -> Device | None:
    """The device of that name; None where no page has it."""
    return next((device for device in DEVICES if device.name == name), None)
