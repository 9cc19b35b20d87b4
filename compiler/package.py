"""Package: a folder with the artifact's files and `package.json`, which says what they are and proves that they are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from compiler.digest import digest_file
from compiler.errors import CheckFailed, UnusableInput
from compiler.stages.cache import write_atomically

MANIFEST = "package.json"
SCHEMA_VERSION = 1


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
class Weights:
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
class Departure:
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
        departures: those that leave the engine.
        unsure: those on which sources contradict each other; they count as staying.
        result_bytes: what the operators' results take together; 0 where it is not known.
        padded_bytes: the same as the engine stores them.
    """

    engine: str
    source: str
    operators: int
    departures: tuple[Departure, ...]
    unsure: tuple[Departure, ...] = ()
    result_bytes: int = 0
    padded_bytes: int = 0

    @property
    def share(self) -> float:
        """The share of operators that stay, 0 to 1."""
        return 1 - len(self.departures) / max(1, self.operators)


@dataclass(frozen=True)
class Lowered:
    """What a target says of the files that it wrote.

    Attributes:
        runtime: name of the runtime that opens them (runtimes/registry.py).
        artifact: the file (or `.` for the folder) to open.
        inputs: signature, in the artifact's order.
        outputs: signature, in the artifact's order.
        weights: what became of the weights.
        placement: where its operators run; None where the target has no account of that.
    """

    runtime: str
    artifact: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Weights
    placement: Placement | None = None


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
    """package.json as data; `folder` is where it was read from.

    Attributes:
        recipe: the short form.
        recipe_full: the same with defaults resolved.
        tools: versions of everything that took part in the lowering.
        allowed: checks that were accepted by name (`--allow`).
        quality: what `verify` found last; None before.
    """

    folder: Path
    model: ModelIdentity
    recipe: str
    recipe_full: dict[str, Any]
    lowered: Lowered
    tools: dict[str, str]
    files: dict[str, FileRecord]
    allowed: tuple[str, ...] = ()
    quality: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def nbytes(self) -> int:
        """Bytes of all files, the manifest aside."""
        return sum(record.nbytes for record in self.files.values())

    @property
    def artifact(self) -> Path:
        return self.folder / self.lowered.artifact


def manifest_json(package: Package) -> str:
    """The manifest's text: sorted keys and no dates, so that equal packages are equal bytes."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": asdict(package.model),
        "recipe": package.recipe,
        "recipe_full": package.recipe_full,
        "tools": package.tools,
        "allowed": list(package.allowed),
        "files": {name: asdict(record) for name, record in package.files.items()},
        "quality": package.quality,
        **asdict(package.lowered),
    }
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_manifest(package: Package) -> None:
    """Write package.json into the package's folder, whole or not at all."""
    write_atomically(package.folder / MANIFEST, manifest_json(package))


def read_package(folder: Path) -> Package:
    """Read a package's manifest. The files are not hashed: `check_files` does that.

    Raises:
        UnusableInput: it is not a package, or of another schema version, or names files outside its folder.
    """
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnusableInput(f"{folder} is not a package: it has no {MANIFEST}. `edgec build` makes one.") from None
    except (OSError, ValueError) as error:
        raise UnusableInput(f"{MANIFEST} of {folder.name} cannot be read: {error}.") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UnusableInput(
            f"{folder.name} has package schema {version!r}, this edgec reads {SCHEMA_VERSION}. Build it again."
        )
    try:
        package = _package_from(document, folder)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnusableInput(
            f"{MANIFEST} of {folder.name} lacks or mangles a field: {error}. Build it again."
        ) from error
    for name in (*package.files, package.lowered.artifact):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UnusableInput(
                f"{MANIFEST} of {folder.name} names the file {name!r}, which leaves its folder. Refused."
            )
    return package


def _package_from(document: Mapping[str, Any], folder: Path) -> Package:
    weights = document["weights"]
    return Package(
        folder=folder,
        model=ModelIdentity(**{**document["model"], "base_model": tuple(document["model"]["base_model"])}),
        recipe=document["recipe"],
        recipe_full=document["recipe_full"],
        lowered=Lowered(
            runtime=document["runtime"],
            artifact=document["artifact"],
            inputs=_ports(document["inputs"]),
            outputs=_ports(document["outputs"]),
            weights=weights_from_json(weights),
            placement=_placement(document.get("placement")),
        ),
        tools=dict(document["tools"]),
        files={name: FileRecord(**record) for name, record in document["files"].items()},
        allowed=tuple(document["allowed"]),
        quality=document["quality"],
    )


def _placement(value: Mapping[str, Any] | None) -> Placement | None:
    if value is None:
        return None
    lists = {key: tuple(Departure(**entry) for entry in value[key]) for key in ("departures", "unsure")}
    return Placement(**{**value, **lists})


def _ports(entries: list[dict[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in entries)


def weights_from_json(value: Mapping[str, Any]) -> Weights:
    """Weights from the JSON that `dataclasses.asdict` makes of them."""
    deviations = tuple(Deviation(**entry) for entry in value["deviations"])
    return Weights(value["effective_bits_per_weight"], dict(value["types"]), deviations, value["decode_read_bytes"])


def lowered_from_json(value: Mapping[str, Any]) -> Lowered:
    """Lowered from the JSON that `dataclasses.asdict` makes of it."""
    return Lowered(
        value["runtime"],
        value["artifact"],
        _ports(value["inputs"]),
        _ports(value["outputs"]),
        weights_from_json(value["weights"]),
        _placement(value["placement"]),
    )


def check_files(package: Package) -> None:
    """Hold every file to its SHA-256.

    Raises:
        CheckFailed: a file is missing, changed, or not in the manifest.
    """
    for name, record in package.files.items():
        path = package.folder / name
        if not path.is_file():
            raise CheckFailed("files", f"{package.name}: the file {name} is missing. Build the package again.")
        if path.stat().st_size != record.nbytes or digest_file(path) != record.sha256:
            raise CheckFailed(
                "files",
                f"{package.name}: the file {name} is not the one that was built (SHA-256 differs). Build it again.",
            )
    present = {p.relative_to(package.folder).as_posix() for p in package.folder.rglob("*") if p.is_file()}
    if extra := sorted(present - set(package.files) - {MANIFEST}):
        raise CheckFailed("files", f"{package.name}: the file {extra[0]} does not belong to the package. Remove it.")


def record_quality(package: Package, quality: dict[str, Any], allowed: Sequence[str]) -> None:
    """Write what verify found, and the checks that were accepted by name, into the package's manifest."""
    names = tuple(sorted({*package.allowed, *allowed}))
    write_manifest(replace(package, quality=quality, allowed=names))
