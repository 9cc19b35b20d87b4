"""Package: a folder with the artifact's files and `package.json`, which says what they are and proves that they are whole."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.digest import digest_file
from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.json_file import read_json
from compiler.recipe import title_of
from compiler.records import from_json
from compiler.relative_name import stays_inside
from compiler.sentence import SentenceVector
from compiler.stages.cache import write_atomically

MANIFEST = "package.json"
# What verify found of the package, beside it.
# What verify leaves beside the manifest, for programs and for people.
VERIFICATION, CARD = "verification.json", "VERIFICATION.md"
SCHEMA_VERSION = 2
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Port:
    """An input or output. `shape` has a name where a size is free, e.g. `("batch", "sequence", 384)`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Deviation:
    """A tensor stored in another type than the scheme's own.

    Attributes:
        tensor: its name in the artifact.
        stored: the type it has.
        reason: why.
        forced: True when the format left no choice; False for a mixture that the scheme means to have.
    """

    tensor: str
    stored: str
    reason: str
    forced: bool


@dataclass(frozen=True)
class StoredWeights:
    """What the weights became.

    Attributes:
        effective_bits_per_weight: 8 x stored bytes of all tensors / number of weights.
        types: number of weights in each storage type.
        deviations: every tensor that is not in the scheme's own type.
        decode_read_bytes: bytes of weights that one generated token reads; None for encoders.
    """

    effective_bits_per_weight: float
    types: dict[str, int]
    deviations: tuple[Deviation, ...] = ()
    decode_read_bytes: int | None = None


@dataclass(frozen=True)
class UnsupportedOperator:
    """An operator that does not run, or may not run, on the engine that a package is made for: its kind, its name, and why."""

    operator: str
    name: str
    reason: str


@dataclass(frozen=True)
class Placement:
    """Which of a package's operators run on the engine that it is made for.

    Attributes:
        engine: its short name, such as `ane`.
        source: `predicted` from a table, or `planned` by the system that runs it.
        operators: how many there are, constants aside.
        unsupported: those that leave the engine.
        unsure: those on which sources contradict each other; they count as staying.
        result_bytes: what the operators' results take together; 0 where it is not known.
        padded_bytes: the same as the engine stores them.
    """

    engine: str
    source: str
    operators: int
    unsupported: tuple[UnsupportedOperator, ...]
    unsure: tuple[UnsupportedOperator, ...] = ()
    result_bytes: int = 0
    padded_bytes: int = 0

    @property
    def share(self) -> float:
        """The share of operators that stay, 0 to 1."""
        return 1 - len(self.unsupported) / max(1, self.operators)


@dataclass(frozen=True)
class Graph:
    """A named entry of a package that can be run.

    Attributes:
        name: `main` where there is one; else what it does, such as `prefill` and `decode`.
        files: what holds it; of a model that is cut into several files, all of them in the order in which they run.
        inputs, outputs: its signature, in the artifact's order.
        states: what it keeps between calls.
        function: its name within the files, where they hold several.
    """

    name: str
    files: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[Port, ...] = ()
    function: str | None = None


@dataclass(frozen=True)
class FixedShapes:
    """The sizes that a package was made with; None, or empty, where the container leaves them free.

    Attributes:
        context_length: tokens that the cache of a language model holds, or is to hold where nothing else is asked.
        sequence_lengths: tokens that an encoder's input must have, one of these.
        longest_sequence: tokens that it may have at most, or that a language model can be given.
        batch: inputs at once.
        vocabulary: width of the logits.
    """

    context_length: int | None = None
    sequence_lengths: tuple[int, ...] = ()
    longest_sequence: int | None = None
    batch: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Platform:
    """The machine that a package needs.

    Attributes:
        system, machine: as Python's `platform` names them: `Linux` and `x86_64`, for one.
        instructions: those that its code may use and not every such machine has, as /proc/cpuinfo names them.
    """

    system: str
    machine: str
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfinished:
    """What another machine must still do before a package can be used.

    Attributes:
        step: what.
        where: where it can be done.
        provable: whether what is there computes already, so that it can be verified, though not used.
    """

    step: str
    where: str
    provable: bool = False


@dataclass(frozen=True)
class Lowered:
    """What a target says of the files that it wrote.

    Attributes:
        runtime: name of the runtime that opens them (runtimes/registry.py).
        graphs: what can be run; the first is what a user means who names none.
        weights: what became of the weights.
        shapes: the sizes that are fixed.
        placement: where its operators run; None where the target has no account of that.
        platform: the machine that it needs; None for any.
        unfinished: what is still to be done elsewhere; None for a package that can be used.
    """

    runtime: str
    graphs: tuple[Graph, ...]
    weights: StoredWeights
    shapes: FixedShapes = FixedShapes()
    placement: Placement | None = None
    platform: Platform | None = None
    unfinished: Unfinished | None = None

    @property
    def main(self) -> Graph:
        """The first graph."""
        return self.graphs[0]


@dataclass(frozen=True)
class ModelIdentity:
    """Which model a package was made from; `digest` is over its config, tokenizer and weight files."""

    name: str
    source: str
    digest: str
    architecture: str
    task: str
    parameters: int
    licence: str | None
    base_model: tuple[str, ...]


@dataclass(frozen=True)
class FileRecord:
    """A file of a package."""

    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Package:
    """package.json as data; `folder` is where it was read from. After the build it never changes.

    Attributes:
        recipe: the short form.
        recipe_full: the same with defaults resolved.
        tools: versions of everything that took part in the lowering.
        allowed: checks of the build that were accepted by name (`--allow`).
        sentence: what the output `sentence_embedding` is, and what goes before a text; None where there is no such output.
    """

    folder: Path
    model: ModelIdentity
    recipe: str
    recipe_full: dict[str, Any]
    lowered: Lowered
    tools: dict[str, str]
    files: dict[str, FileRecord]
    allowed: tuple[str, ...] = ()
    sentence: SentenceVector | None = None

    @property
    def title(self) -> str:
        """What it is called in tables and sentences."""
        return title_of(self.recipe, self.name)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which names the digest of every file: what everything else calls the package by."""
        return hashlib.sha256(manifest_json(self).encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all files, the manifest aside."""
        return sum(record.nbytes for record in self.files.values())

    @property
    def artifact(self) -> Path:
        """The first file of the main graph."""
        return self.folder / self.lowered.main.files[0]


def manifest_json(package: Package) -> str:
    """The manifest's text: sorted keys and no dates, so that equal packages are equal bytes."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(package)}
    del document["folder"]
    document |= document.pop("lowered")
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_manifest(package: Package) -> None:
    """Write `package.json`."""
    write_atomically(package.folder / MANIFEST, manifest_json(package))


def read_package(folder: Path) -> Package:
    """Read a package; its files are not hashed: `check_files` does that.

    Raises:
        UnusableInput: it is not a package, or of another schema version, or names files outside its folder.
    """
    try:
        document = read_json(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableInput(f"{folder} is not a package: it has no {MANIFEST}. `edgec build` makes one.") from None
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UnusableInput(
            f"{folder.name} has package schema {version!r}, this edgec reads {SCHEMA_VERSION}. Build it again."
        )
    del document["schema_version"]
    parts = {field.name for field in fields(Lowered)}
    lowered = {name: document.pop(name) for name in parts & set(document)}
    try:
        package = replace(from_json(_Stored, {**document, "lowered": lowered}).package(), folder=folder)
    except ValueError as error:
        raise UnusableInput(
            f"{MANIFEST} of {folder.name} lacks or mangles a field: {error}. Build it again."
        ) from error
    if re.search(r"[\x00-\x1f\x7f]", f"{package.recipe}{package.model.name}{package.model.source}"):
        raise UnusableInput(f"{MANIFEST} of {folder.name} has a name with control characters. Refused.")
    if not package.lowered.graphs or not all(graph.files for graph in package.lowered.graphs):
        raise UnusableInput(f"{MANIFEST} of {folder.name} names nothing that can be run. Build it again.")
    for name in (*package.files, *(file for graph in package.lowered.graphs for file in graph.files)):
        path = PurePosixPath(name)
        if not stays_inside(name):
            raise UnusableInput(
                f"{MANIFEST} of {folder.name} names the file {name!r}, which leaves its folder. Refused."
            )
        if not name.isprintable() or max(len(part.encode()) for part in path.parts) > _LONGEST_NAME:
            raise UnusableInput(
                f"{MANIFEST} of {folder.name} names the file {name!r:.80}, which no file can be called."
            )
    for name in (file for graph in package.lowered.graphs for file in graph.files):
        if not any(f"{each}/".startswith(f"{name}/") for each in package.files):
            raise UnusableInput(
                f"{MANIFEST} of {folder.name} says that {name!r} is run, and lists no such file. Refused."
            )
    return package


@dataclass(frozen=True)
class _Stored:
    """What package.json holds, `lowered` put together again."""

    model: ModelIdentity
    recipe: str
    recipe_full: dict[str, Any]
    lowered: Lowered
    tools: dict[str, str]
    files: dict[str, FileRecord]
    allowed: tuple[str, ...]
    sentence: SentenceVector | None = None

    def package(self) -> Package:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Package(folder=Path(), **own)


def check_files(package: Package) -> None:
    """Hold every file to its SHA-256.

    Raises:
        CheckFailed: a file is missing, changed, or not in the manifest.
    """
    _require_plain(package)
    for name, record in package.files.items():
        path = package.folder / name
        if not path.is_file():
            raise CheckFailed("files", f"{package.title}: the file {name} is missing. Build the package again.")
        if path.stat().st_size != record.nbytes or digest_file(path) != record.sha256:
            raise CheckFailed(
                "files",
                f"{package.title}: the file {name} is not the one that was built (SHA-256 differs). Build it again.",
            )
    if extra := foreign_files(package):
        raise CheckFailed("files", f"{package.title}: the file {extra[0]} does not belong to the package. Remove it.")


_BEING_WRITTEN = re.compile(rf"\.({re.escape(VERIFICATION)}|{re.escape(CARD)})-[A-Za-z0-9_]{{8}}")


def foreign_files(package: Package) -> list[str]:
    """Files in its folder that are neither the package's nor what verify leaves there."""
    present = {p.relative_to(package.folder).as_posix() for p in package.folder.rglob("*") if not p.is_dir()}
    # Another verify may be writing what it found.
    present = {name for name in present if not _BEING_WRITTEN.fullmatch(name)}
    return sorted(present - set(package.files) - {MANIFEST, VERIFICATION, CARD})


def _require_plain(package: Package) -> None:
    """Refuse a package in which something is a link, a pipe or a device: what is opened would not be what was hashed."""
    for path in package.folder.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no regular file"
            raise CheckFailed(
                "files",
                f"{package.title}: {path.relative_to(package.folder)} is {what}, which no package holds. Remove it.",
            )
