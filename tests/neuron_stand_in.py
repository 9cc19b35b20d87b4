"""What stands for AWS's Neuron where it cannot run: a program in the compiler's place, and a module in nrtpy's.

The program checks what it is called with and writes NEFF files, with the module that it was given inside. The module has the
interface that AWS documents (aws-neuron/aws-neuron-sdk 81ce03ae, neuron-runtime/nrtpy), and computes what is inside by XLA.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMPILER = f"""#!{sys.executable}
import io, pathlib, struct, sys, tarfile
words = sys.argv[1:]
if words == ["--version"]:
    print("NeuronX Compiler version 2.21.33363.0+82129205")
    raise SystemExit(0)
graph = words[1].removesuffix(".hlo_module.pb")
wanted = ["compile", graph + ".hlo_module.pb", "--framework", "XLA", "--target", "inf2", "--model-type", "transformer",
          "--auto-cast", "none", "--optlevel", "2", "--output", graph + ".neff"]
if words != wanted:
    print("[ERROR] [NCC_EARG002] " + " ".join(words))
    raise SystemExit(70)
pathlib.Path("log-neuron-cc.txt").write_text("littered")
neff = pathlib.Path(graph + ".neff")
FAULT
inside = io.BytesIO()
with tarfile.open(fileobj=inside, mode="w:gz") as archive:
    for name, data in (("neff.json", b"{{}}"), ("sg00/def.json", b"{{}}"), ("hlo", pathlib.Path(words[1]).read_bytes())):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
head = struct.pack("<5Q", 2, 1024, len(inside.getvalue()), 2, 0)
neff.write_bytes(head.ljust(1024, b"\\0") + inside.getvalue())
"""

NRTPY = """
import tarfile
from types import SimpleNamespace

import jax, numpy as np
from jaxlib import _jax, xla_client

from compiler.formats.hlo import parameters_of, parse_module, results_of, write_module


class NrtError(RuntimeError):
    pass


class NrtpyTensor:
    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    @classmethod
    def from_numpy(cls, array, name=None, core_id=0):
        return cls(np.array(array))

    def numpy(self):
        return self.array.copy()


class NrtpyModel:
    @classmethod
    def load_from_neff(cls, neff_path, name=None, core_id=0, cc_enabled=False, rank_id=0, world_size=1):
        with open(neff_path, "rb") as stream:
            stream.seek(1024)
            with tarfile.open(fileobj=stream, mode="r|*") as archive:
                (data,) = (archive.extractfile(each).read() for each in archive if each.name == "hlo")
        if b"NO MEMORY" in data:
            raise NrtError("NRT Error NRT_RESOURCE(4)")
        module = parse_module(data, "hlo")
        model = cls()
        model._parameters, model._results = parameters_of(module), results_of(module)
        del module.input_output_alias.entries[:]
        model.input_tensors_info = model._told("input", model._parameters)
        model.output_tensors_info = model._told("output", model._results)
        client = xla_client.make_cpu_client()
        devices = xla_client.DeviceList(tuple(client.local_devices()[:1]))
        stablehlo = _jax.mlir.hlo_to_stablehlo(write_module(module))
        model._device = client.local_devices()[0]
        model._executable = client.compile_and_load(stablehlo, devices, xla_client.CompileOptions())
        return model

    def _told(self, kind, tensors):
        return {f"{kind}{n}": SimpleNamespace(shape=each.shape, size=each.nbytes) for n, each in enumerate(tensors)}

    def __call__(self, inputs, outputs=None, save_trace=False, ntff_name=None):
        assert set(inputs) == set(self.input_tensors_info) and set(outputs) == set(self.output_tensors_info)
        given = [jax.device_put(inputs[f"input{n}"].array, self._device) for n in range(len(self._parameters))]
        results = self._executable.execute_sharded(given).disassemble_into_single_device_arrays()
        for number, (value,) in enumerate(results):
            np.copyto(outputs[f"output{number}"].array, np.asarray(value))
        with open("CALLS", "a") as calls:
            calls.write("a graph was called\\n")
"""


def compiler_on_path(folder: Path, fault: str = "") -> dict[str, str]:
    """An environment in which neuronx-cc is that program; `fault` is done after it has looked at its arguments."""
    folder.mkdir()
    program = folder / "neuronx-cc"
    program.write_text(COMPILER.replace("FAULT", fault))
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def runtime_on_path(folder: Path) -> dict[str, str]:
    """An environment in which nrtpy is that module; it notes its calls in `folder`/CALLS."""
    folder.mkdir()
    (folder / "nrtpy.py").write_text(NRTPY.replace('"CALLS"', repr(str(folder / "CALLS"))))
    return {"PYTHONPATH": str(folder)}
