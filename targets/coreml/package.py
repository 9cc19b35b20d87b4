"""An .mlpackage from MIL functions: the same bytes for the same input, and weights written one at a time.

The folder is Manifest.json beside Data/com.apple.CoreML/{model.mlmodel, weights/weight.bin}. Apple's own writer puts random
identifiers and the date in; here identifiers follow from the content and there is no date.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
from coremltools import proto
from coremltools.converters.mil.backend.mil.helper import create_file_value_tensor, types_to_proto_primitive
from coremltools.converters.mil.backend.mil.load import CoreMLProtoExporter, MILProtoExporter
from coremltools.converters.mil.mil import Function, Program
from coremltools.libmilstoragepython import _BlobStorageWriter
from google.protobuf.message import DecodeError

from compiler.errors import UnusableInput
from targets.coreml.weights import Blob

_DATA = "com.apple.CoreML"
_NAMESPACE = uuid.UUID("8ab3c04b-5d4b-5c0e-9a66-6f0d5a7b1c11")


class _Exporter(MILProtoExporter):
    """Writes the blobs of stand-in constants; equal keys are written once."""

    def __init__(self, program: Program, folder: str, version: int, blobs: Mapping[str, Blob]) -> None:
        super().__init__(program, folder, version)
        self._blobs = blobs
        self._offsets: dict[str, int] = {}

    def get_milproto_value(self, var: Any) -> Any:
        """Small constants stand in the program, unless they are stand-ins, whose zeros mean nothing."""
        return self.create_file_value(var) if var.op.name in self._blobs else super().get_milproto_value(var)

    def create_file_value(self, var: Any) -> Any:
        blob = self._blobs.get(var.op.name)
        if blob is None:
            return self._own_value(var)
        if blob.key not in self._offsets:
            self._offsets[blob.key] = _write(self.get_blob_writer(self.get_weight_path(var.op)), blob)
        return _file_value(var, self._offsets[blob.key])

    def _own_value(self, var: Any) -> Any:
        """A constant with values of its own: tables of positions and masks. Equal ones are written once too."""
        values = np.ascontiguousarray(var.val)
        key = f"{values.dtype} {hashlib.sha256(values.tobytes()).hexdigest()}"
        if key not in self._offsets:
            self._offsets[key] = super().create_file_value(var).blobFileValue.offset
        return _file_value(var, self._offsets[key])


def _file_value(var: Any, offset: int) -> Any:
    primitive = types_to_proto_primitive(var.sym_type.get_primitive())
    return create_file_value_tensor("@model_path/weights/weight.bin", offset, var.val.shape, primitive)


def _write(writer: _BlobStorageWriter, blob: Blob) -> int:
    values = np.ascontiguousarray(blob.read()).reshape(-1)
    if values.size != blob.elements:
        raise ValueError(f"{blob.key} has {values.size} values, its constant {blob.elements}")
    if blob.kind == "float16":
        return int(writer.write_fp16_data(values.view(np.uint16)))
    return int(getattr(writer, f"write_{blob.kind}_data")(values))


def write_mlpackage(
    folder: Path, functions: Mapping[str, Function], blobs: Mapping[str, Blob], version: int, told: Mapping[str, str]
) -> None:
    """Write the package.

    Args:
        folder: where to; must not exist.
        functions: MIL functions by name; the first is the default one.
        blobs: the values of stand-in constants, by name.
        version: Core ML's specification version (7 is iOS 16, 8 iOS 17, 9 iOS 18).
        told: what its metadata says of the model (compiler/lineage.py, `about`).
    """
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = next(iter(functions))
    program.export_as_multifunction = len(functions) > 1
    data = folder / "Data" / _DATA
    weights = data / "weights"
    weights.mkdir(parents=True)
    exporter = _Exporter(program, str(weights), version, blobs)
    milproto = exporter.export()
    exporter.blob_writers.clear()
    model = CoreMLProtoExporter(program, milproto, None, None, None, "mlprogram", "milinternal", version).export(
        version
    )
    description = model.description
    for each in description.functions if program.export_as_multifunction else ():
        each.ClearField("predictedFeatureName")
    description.metadata.shortDescription = f"{told['name']}, {told['recipe']}"
    description.metadata.license = told.get("license", "")
    description.metadata.author = told.get("author", "")
    description.metadata.versionString = told["edgec"]
    if "base_model" in told:
        description.metadata.userDefined["edgec.base_model"] = told["base_model"]
    description.metadata.userDefined["com.github.apple.coremltools.version"] = coremltools.__version__
    description.metadata.userDefined["com.github.apple.coremltools.source"] = "edgec"
    (data / "model.mlmodel").write_bytes(model.SerializeToString(deterministic=True))
    _write_manifest(folder)


def _write_manifest(folder: Path) -> None:
    entries = (
        ("CoreML Model Specification", "model.mlmodel", f"{_DATA}/model.mlmodel"),
        ("CoreML Model Weights", "weights", f"{_DATA}/weights"),
    )
    identifiers = [str(uuid.uuid5(_NAMESPACE, path)).upper() for _, _, path in entries]
    items = {
        identifier: {"author": _DATA, "description": description, "name": name, "path": path}
        for identifier, (description, name, path) in zip(identifiers, entries, strict=True)
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": identifiers[0]}
    (folder / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def read_spec(folder: Path) -> Any:
    """The model's protobuf of a package.

    Raises:
        UnusableInput: there is none, it is damaged, or it is no program (a neural network of older tools).
    """
    path = folder / "Data" / _DATA / "model.mlmodel"
    model = proto.Model_pb2.Model()
    try:
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UnusableInput(f"{folder.name} is no .mlpackage that can be read: {path.name} is missing.") from error
    except DecodeError as error:
        raise UnusableInput(f"{folder.name} is damaged: {path.name} is no Core ML model. Build it again.") from error
    if not model.mlProgram.functions:
        raise UnusableInput(f"{folder.name} holds no ML program but a model of an older kind. Convert it anew.")
    return model
