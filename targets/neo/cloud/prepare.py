"""The stage that makes what Neo is given: the archive, and the job that is asked for, all held to Neo's tables."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.archive import write_tar
from compiler.lineage import model_of, write_lineage
from compiler.model import Model, is_convolutional
from compiler.package import FixedShapes, Graph, Lowered, Port, StoredWeights, Unfinished
from targets.neo.cloud.archive import NAME, find_layout_faults, list_members
from targets.neo.cloud.choice import choose
from targets.neo.cloud.job import CompilationJob, find_faults
from targets.neo.cloud.onnx_inputs import find_file_faults
from targets.neo.cloud.tables import ONNX_IR, ONNX_OPSET, TORCHSCRIPT_VERSIONS

JOB = "job.json"
_NEAR = 1e-4
_FIRST_ID, _LAST_ID = 5, 500
# Members of a TorchScript file that tell lines of source files, and with them paths of this machine.
_DEBUG = ".debug_pkl"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def prepare(
    model: str, out: str, variant: str, sequence_length: int, batch: int, lineage: dict[str, str]
) -> dict[str, Any]:
    """Write `model.tar.gz` and `job.json`.

    Raises:
        CheckFailed: Neo would refuse the job or the archive, or what is in it does not compute what the model computes.
    """
    folder, source = Path(out), model_of(Path(model), lineage)
    write_lineage(source, lineage, folder, processor=True)
    job = choose(variant, source)
    write = _write_onnx if job.framework == "ONNX" else _write_torchscript
    file, inputs, outputs = write(source, folder, job, sequence_length, batch)
    job = replace(job, inputs={port.name: tuple(int(size) for size in port.shape) for port in inputs})
    write_tar(folder / NAME, [(file.name, file)])
    file.unlink()
    require_accepted(job, folder / NAME, inputs)
    (folder / JOB).write_text(json.dumps(asdict(job), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    length = sequence_length if source.takes == "text" else None
    return asdict(
        Lowered(
            runtime="dlr",
            graphs=(Graph("main", (NAME,), inputs, outputs),),
            weights=StoredWeights(32.0, {"fp32": source.parameters}),
            shapes=FixedShapes(sequence_lengths=(length,) if length else (), longest_sequence=length, batch=batch),
            unfinished=Unfinished("compiling by SageMaker Neo", "a machine with an AWS account, a bucket and a role"),
        )
    )


def require_accepted(job: CompilationJob, archive: Path, ports: Sequence[Port] = ()) -> None:
    """Refuse a job that Neo would refuse.

    Raises:
        CheckFailed: with the first reason, and how many there are.
    """
    faults = [*find_faults(job, ports), *find_layout_faults(job.framework, list(list_members(archive)))]
    if not faults and job.framework == "ONNX":
        faults = list(find_file_faults(job.inputs, archive))
    if faults:
        more = f" ({len(faults)} such faults in all)" if len(faults) > 1 else ""
        raise CheckFailed("neo", f"Neo would refuse this job for {job.title}: {faults[0]}{more}")


def _write_torchscript(
    source: Model, folder: Path, job: CompilationJob, length: int, batch: int
) -> tuple[Path, tuple[Port, ...], tuple[Port, ...]]:
    """A traced model.pth of edgec's own network, whose operators every PyTorch has, or of a convolutional model's.

    Inputs come in the order of their names.
    """
    import torch

    from compiler.pretrained import load_encoder

    encoder = load_encoder(source.folder, source.task)
    own, network, image, vocabulary = _network(source)
    names = tuple(sorted(own))

    class InOrder(torch.nn.Module):
        """The network with its inputs in the order of their names."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network if network is not None else encoder.module

        def forward(self, *given: torch.Tensor) -> object:
            named = dict(zip(names, given, strict=True))
            return self.network(*(named[name] for name in own))

    examples, others = (_examples(names, image, batch, length, vocabulary, seed) for seed in (0, 1))
    with torch.inference_mode():
        traced = torch.jit.trace(InOrder().eval(), tuple(examples.values()), check_trace=False)
        found = _listed(traced(*others.values()))
        wanted = _listed(encoder.module(*(others[name] for name in encoder.input_names)))
    _require_same(found, wanted, source, _seen(others))
    raw, file = folder / "traced.pth", folder / "model.pth"
    torch.jit.save(traced, str(raw))
    version = _without_debug(raw, file)
    raw.unlink()
    most = TORCHSCRIPT_VERSIONS[str(job.version)]
    if version > most:
        raise UnusableInput(
            f"The TorchScript file of {source.name} has version {version}, and PyTorch {job.version} reads up to {most}. "
            "Another release of torch may write an older one."
        )
    kind = "float32" if image else "int64"
    inputs = tuple(Port(name, kind, tuple(examples[name].shape)) for name in names)
    outputs = (Port(name, "float32", tuple(each.shape)) for name, each in zip(source.outputs, found, strict=True))
    return file, inputs, tuple(outputs)


def _network(source: Model) -> tuple[tuple[str, ...], Any, tuple[int, int, int] | None, int]:
    """Names of inputs, edgec's own network or None where it has none, the picture's size, and ids that there are."""
    import torch

    from compiler.image_processor import picture_size
    from compiler.networks.encoder import build_encoder
    from compiler.networks.encoder_family import describe_encoder, encoder_sources
    from compiler.networks.families import encoder_family
    from compiler.networks.sentence import with_sentence
    from compiler.networks.weights import fill_from

    if is_convolutional(source.config):
        size = picture_size(source.folder, source.config.get("image_size"))
        return ("pixel_values",), None, (int(source.config.get("num_channels", 3)), *size), 0
    family = encoder_family(source)
    config = describe_encoder(source, family)
    with torch.device("meta"):
        network = build_encoder(config, "plain").eval()
    fill_from(network, *with_sentence(source, encoder_sources(source, family, config)))
    return network.input_names, network, config.image[0] if config.image else None, config.vocabulary


def _examples(
    names: Sequence[str], image: tuple[int, int, int] | None, batch: int, length: int, vocabulary: int, seed: int
) -> dict[str, Any]:
    """Inputs by name: a picture, or a text whose last fifth is padding and whose last half is its second segment."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    if image is not None:
        return {name: torch.randn((batch, *image), generator=generator) for name in names}
    last = min(_LAST_ID, vocabulary)
    ids = torch.randint(min(_FIRST_ID, last - 1), last, (batch, length), generator=generator)
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    mask[:, length - length // 5 :] = 0
    segments[:, length // 2 :] = 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: given[name] for name in names}


def _seen(inputs: dict[str, Any]) -> int | None:
    """Tokens before the padding; None of pictures."""
    mask = inputs.get("attention_mask")
    return None if mask is None else int(mask[0].sum())


def _listed(results: Any) -> list[Any]:
    return list(results) if isinstance(results, tuple | list) else [results]


def _require_same(found: Sequence[Any], wanted: Sequence[Any], source: Model, seen: int | None = None) -> None:
    """Hold what is sent to the fp32 model, on tokens that are no padding."""
    worst = 0.0
    for own, other in zip(found, wanted, strict=True):
        a, b = np.asarray(own), np.asarray(other)
        by_token = seen is not None and a.ndim > 1 and a.shape[1] > seen and source.task != "text-classification"
        part = (
            (slice(None), slice(0, seen)) if by_token and (a.ndim == 3 or source.task == "question-answering") else ()
        )
        worst = max(worst, float(np.abs(a[part] - b[part]).max()))
    if not worst <= _NEAR:
        raise CheckFailed(
            "lowering",
            f"What is made of {source.name} for Neo differs from the model by {worst:.2g}; at most {_NEAR:g} is taken. "
            "Nothing is sent.",
        )


def _without_debug(raw: Path, file: Path) -> int:
    """Copy a TorchScript file without the members that tell of source files; its version."""
    version = 0
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            if name.endswith(_DEBUG):
                continue
            data = source.read(name)
            target.writestr(zipfile.ZipInfo(name, _EPOCH), data)
            if name.endswith("/version"):
                version = int(data)
    return version


def _write_onnx(
    source: Model, folder: Path, job: CompilationJob, length: int, batch: int
) -> tuple[Path, tuple[Port, ...], tuple[Port, ...]]:
    """model.onnx of a picture's classifier, in the operators of ONNX 1.7."""
    import onnx
    import onnxruntime
    import torch

    from compiler.pretrained import example_inputs, load_encoder

    encoder = load_encoder(source.folder, source.task)
    examples = example_inputs(encoder, batch, length)
    file = folder / "model.onnx"
    torch.onnx.export(
        encoder.module,
        tuple(examples),
        str(file),
        input_names=list(encoder.input_names),
        output_names=list(encoder.output_names),
        opset_version=ONNX_OPSET,
        dynamo=False,
    )
    document = onnx.load(str(file))
    opset = max(each.version for each in document.opset_import)
    if document.ir_version > ONNX_IR or opset > ONNX_OPSET:
        raise UnusableInput(
            f"The ONNX file of {source.name} has IR {document.ir_version} and opset {opset}, and Neo reads ONNX 1.7: "
            f"{ONNX_IR} and {ONNX_OPSET}."
        )
    given = {name: np.asarray(value) for name, value in zip(encoder.input_names, examples, strict=True)}
    found = onnxruntime.InferenceSession(str(file)).run(None, given)
    with torch.inference_mode():
        wanted = _listed(encoder.module(*examples))
    _require_same(found, wanted, source)
    inputs = tuple(Port(name, str(value.dtype), value.shape) for name, value in given.items())
    outputs = tuple(
        Port(name, "float32", tuple(each.shape)) for name, each in zip(encoder.output_names, found, strict=True)
    )
    return file, inputs, outputs
