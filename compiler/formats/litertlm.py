"""A `.litertlm` bundle, version 1.7: sections on blocks of 16 KiB behind a flatbuffer that lists them.

The format is LiteRT-LM's (schema/core/litertlm_header_schema.fbs, litert_lm_builder). Nothing of a bundle written here
depends on the time or on chance.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
from google.protobuf.message import DecodeError
from litert_lm_builder import litertlm_header_schema_py_generated as schema
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from compiler.errors import UnusableInput

_MAGIC, _VERSION = b"LITERTLM", (1, 7, 0)
_BLOCK = 16 * 1024
# Behind the magic word, the version and four empty bytes stands where the header ends.
_END_AT, _HEADER_AT = 24, 32
_LARGEST_HEADER = 2**20
_MOST_SECTIONS = 64
_LARGEST_TEXT = 2**28

METADATA = schema.AnySectionDataType.LlmMetadataProto
MODEL = schema.AnySectionDataType.TFLiteModel
TOKENIZER = schema.AnySectionDataType.HF_Tokenizer_Zlib


@dataclass(frozen=True)
class Section:
    """A part of a bundle: its kind (`AnySectionDataType` of the schema) and its bytes."""

    kind: int
    data: bytes | memoryview


@dataclass(frozen=True)
class NewSection:
    """A part of a bundle that is written: its kind, its bytes one piece after the other, and what is said of it."""

    kind: int
    pieces: Sequence[bytes | memoryview]
    items: Mapping[str, str] = field(default_factory=dict)


def write_litertlm(file: Path, sections: Sequence[NewSection], about: Mapping[str, str]) -> None:
    """Write a bundle; `about` is what its header says of the whole."""
    ends = [(1, 1) for _ in sections]
    place, spans = _up(_HEADER_AT + len(_header(sections, about, ends))), []
    for section in sections:
        spans.append((place, place + sum(map(len, section.pieces))))
        place = _up(spans[-1][1])
    header = _header(sections, about, spans)
    with file.open("wb") as stream:
        stream.write(_MAGIC + struct.pack("<3I", *_VERSION) + bytes(4))
        stream.write(struct.pack("<Q", _HEADER_AT + len(header)) + header)
        for section, (begin, _) in zip(sections, spans, strict=True):
            stream.write(bytes(begin - stream.tell()))
            for piece in section.pieces:
                stream.write(piece)


def _up(place: int) -> int:
    return -(-place // _BLOCK) * _BLOCK


def _header(sections: Sequence[NewSection], about: Mapping[str, str], spans: Sequence[tuple[int, int]]) -> bytes:
    objects = []
    for section, (begin, end) in zip(sections, spans, strict=True):
        made = schema.SectionObjectT()
        made.items, made.dataType = [_pair(key, value) for key, value in section.items.items()], section.kind
        made.beginOffset, made.endOffset = begin, end
        objects.append(made)
    document = schema.LiteRTLMMetaDataT()
    document.systemMetadata = schema.SystemMetadataT()
    document.systemMetadata.entries = [_pair(key, value) for key, value in about.items()]
    document.sectionMetadata = schema.SectionMetadataT()
    document.sectionMetadata.objects = objects
    builder = flatbuffers.Builder(_BLOCK)
    builder.Finish(document.Pack(builder))
    return bytes(builder.Output())


def _pair(key: str, value: str) -> Any:
    text = schema.StringValueT()
    text.value = value
    made = schema.KeyValuePairT()
    made.key, made.value, made.valueType = key, text, schema.VData.StringValue
    return made


@contextmanager
def open_litertlm(file: Path) -> Iterator[tuple[Section, ...]]:
    """The sections of a bundle, mapped while it is open.

    Raises:
        UnusableInput: it is no bundle, one of another major version, or a damaged one.
    """
    with file.open("rb") as stream:
        size = file.stat().st_size
        try:
            spans = _read_header(stream.read(_HEADER_AT), stream.read(_LARGEST_HEADER), size)
        except (ValueError, IndexError, TypeError, AttributeError, struct.error, OverflowError) as error:
            raise UnusableInput(
                f"{file.name} is no .litertlm bundle of version 1, or a damaged one. Build the package again."
            ) from error
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            whole = memoryview(mapped)
            sections = tuple(Section(kind, whole[begin:end]) for kind, begin, end in spans)
            try:
                yield sections
            finally:
                for section in sections:
                    assert isinstance(section.data, memoryview)
                    section.data.release()
                whole.release()


def _read_header(first: bytes, rest: bytes, size: int) -> list[tuple[int, int, int]]:
    """Kind, begin and end of every section."""
    major = struct.unpack_from("<I", first, len(_MAGIC))[0]
    (end,) = struct.unpack_from("<Q", first, _END_AT)
    if first[: len(_MAGIC)] != _MAGIC or major != _VERSION[0] or not _HEADER_AT < end <= _HEADER_AT + len(rest):
        raise ValueError("no header")
    document = schema.LiteRTLMMetaData.GetRootAs(rest[: end - _HEADER_AT], 0)
    listed = document.SectionMetadata()
    if not 0 < listed.ObjectsLength() <= _MOST_SECTIONS:
        raise ValueError("no sections")
    spans = []
    for number in range(listed.ObjectsLength()):
        each = listed.Objects(number)
        begin, stop = each.BeginOffset(), each.EndOffset()
        if not end <= begin <= stop <= size:
            raise ValueError("a section lies outside")
        spans.append((each.DataType(), begin, stop))
    return spans


def find_section(sections: Sequence[Section], kind: int, file: Path) -> bytes | memoryview:
    """The bytes of the one section of a kind.

    Raises:
        UnusableInput: there is none, or several.
    """
    found = [section.data for section in sections if section.kind == kind]
    if len(found) != 1:
        name = {METADATA: "metadata", MODEL: "a model", TOKENIZER: "a tokenizer"}[kind]
        raise UnusableInput(
            f"{file.name} has {len(found)} sections with {name}, and needs one. Build the package again."
        )
    return found[0]


def read_metadata(sections: Sequence[Section], file: Path) -> Any:
    """What a bundle says of its model (LlmMetadata of runtime/proto/llm_metadata.proto).

    Raises:
        UnusableInput: there is none, or it is damaged.
    """
    try:
        return llm_metadata_pb2.LlmMetadata.FromString(bytes(find_section(sections, METADATA, file)))
    except DecodeError as error:
        raise UnusableInput(f"What {file.name} says of its model is damaged. Build the package again.") from error


def packed_text(text: bytes) -> bytes:
    """A text as the section of a tokenizer holds it: its size, then zlib."""
    return struct.pack("<Q", len(text)) + zlib.compress(text, 9)


def unpacked_text(data: bytes | memoryview) -> bytes:
    """The text of such a section.

    Raises:
        UnusableInput: it is damaged, or larger than any tokenizer.
    """
    try:
        (size,) = struct.unpack_from("<Q", data)
        if size > _LARGEST_TEXT:
            raise ValueError("too large")
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(bytes(data[8:]), size + 1)
        if len(text) != size or not unpacking.eof:
            raise ValueError("another size")
    except (ValueError, struct.error, zlib.error) as error:
        raise UnusableInput("The tokenizer in the .litertlm bundle is damaged. Build the package again.") from error
    return text
