"""How a handler opens a package's runtime on the machine that serves: lines of its source, and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from compiler.formats.dlr import device_of
from compiler.package import Package

# Lines of every handler, in which `data` is a request.
READ_JSON = """    try:
        given = json.loads(data)
    except RecursionError:
        raise ValueError("The request is nested too deep.") from None"""


@dataclass(frozen=True)
class Handler:
    """A script, the package's files by their names in the kit, and the distributions that it needs.

    Attributes:
        script: the source of `inference.py`.
        files: by their names in the kit.
        pinned: distributions in the versions of this machine.
        unpinned: others.
    """

    script: str
    files: Mapping[str, str]
    pinned: tuple[str, ...]
    unpinned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opener:
    """How a runtime is opened.

    Attributes:
        file: the model's name in the kit.
        imports: lines of the handler.
        open: its function `open_model`, of which comes a function from arrays by name to arrays by name.
        pinned: distributions that it needs, in the versions of this machine, where the package was verified.
        unpinned: others, in the versions that there are for the machine that serves.
        folder: the package's folder whose files lie beside one another in the kit, the model among them; empty for the model
            alone.
    """

    file: str
    imports: str
    open: str
    pinned: tuple[str, ...]
    unpinned: tuple[str, ...] = ()
    folder: str = ""


_OPENERS: Mapping[str, Opener] = {
    "onnxruntime": Opener(
        "model.onnx",
        "import onnxruntime",
        "def open_model(file):\n"
        "    session = onnxruntime.InferenceSession(str(file))\n"
        "    names = [each.name for each in session.get_outputs()]\n"
        "    return lambda inputs: dict(zip(names, session.run(names, inputs)))",
        ("onnxruntime", "numpy"),
    ),
    "litert": Opener(
        "model.tflite",
        "from ai_edge_litert.interpreter import Interpreter",
        "def open_model(file):\n"
        "    run = Interpreter(str(file), num_threads=os.cpu_count()).get_signature_runner()\n"
        "    return lambda inputs: run(**inputs)",
        ("ai-edge-litert", "numpy"),
    ),
    "tvm": Opener(
        "compiled.so",
        'os.environ["TVM_USE_RUNTIME_LIB"], os.environ["TVM_BIND_THREADS"] = "1", "0"\n'
        'os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count()))\n'
        "import tvm\n"
        "from tvm.runtime.vm import VirtualMachine",
        "def open_model(file):\n"
        '    main = VirtualMachine(tvm.runtime.load_module(str(file)), tvm.cpu())["main"]\n'
        "\n"
        "    def run(inputs):\n"
        "        found = main(*(tvm.runtime.tensor(each) for each in inputs.values()))\n"
        '        values = [found] if hasattr(found, "numpy") else list(found)\n'
        "        return dict(zip(OUTPUTS, (each.numpy() for each in values)))\n"
        "\n"
        "    return run",
        ("apache-tvm", "numpy"),
    ),
}
_NEO_FOLDER = "compiled"
# A model that SageMaker Neo compiled of PyTorch's, in AWS's container for those, which has torch and Neo's library.
_NEO_PYTORCH = Opener(
    "",
    "import torch",
    "def open_model(file):\n"
    "    try:\n"
    "        import neopytorch\n"
    "    except ModuleNotFoundError:\n"
    "        pass\n"
    "    else:\n"
    "        neopytorch.config(model_dir=str(file.parent), neo_runtime=True)\n"
    '    place = "cuda" if torch.cuda.is_available() else "cpu"\n'
    "    model = torch.jit.load(str(file), map_location=place)\n"
    "\n"
    "    def run(inputs):\n"
    "        # Neo's reader gives inputs in the order of their names.\n"
    "        with torch.no_grad():\n"
    "            found = model(*(torch.from_numpy(inputs[name]).to(place) for name in sorted(inputs)))\n"
    "        found = found if isinstance(found, (tuple, list)) else [found]\n"
    "        return dict(zip(OUTPUTS, (each.cpu().numpy() for each in found)))\n"
    "\n"
    "    return run",
    (),
    folder=_NEO_FOLDER,
)
# What Neo compiled of another framework's, for a board with its runtime.
_DLR = Opener(
    "",
    "import dlr",
    "def open_model(file):\n"
    '    model = dlr.DLRModel(str(file.parent), "$device")\n'
    "    return lambda inputs: dict(zip(OUTPUTS, model.run(inputs)))",
    (),
    ("dlr", "numpy"),
    _NEO_FOLDER,
)


def opener_of(package: Package) -> Opener | None:
    """How the runtime of a package is opened; None where no handler runs it."""
    if package.lowered.runtime != "dlr":
        return _OPENERS.get(package.lowered.runtime)
    own = _NEO_PYTORCH if is_neo_pytorch(package) else _DLR
    device = device_of(package.artifact.parent)
    return replace(own, file=package.artifact.name, open=own.open.replace("$device", device))


def is_neo_pytorch(package: Package) -> bool:
    """Whether it is a model for PyTorch's own runtime, as SageMaker Neo gives them back."""
    return package.lowered.runtime == "dlr" and package.artifact.suffix in (".pt", ".pth")


RUNTIMES = (*_OPENERS, "dlr")
