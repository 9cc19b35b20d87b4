"""What the user says of a quantization beside its scheme: calibration, head and embedding, GPTQ's settings, a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compiler.errors import UnusableInput

Storage = Literal["auto", "kept", "int4", "int8"]
_FEWEST_SAMPLE_TOKENS = 16
# Weights that share a scale in an embedding or a head.
TABLE_GROUP = 32
STORAGES: tuple[Storage, ...] = ("auto", "kept", "int4", "int8")


@dataclass(frozen=True)
class Calibration:
    """The samples that GPTQ and sensitivities are measured on.

    Attributes:
        text: SHA-256 of the calibration text (calibrate/texts.py keeps it); None for text of the model's own.
        pictures: the same of an image model's pictures (calibrate/pictures.py); None for drawn ones.
        arrays: the same of a function's inputs (calibrate/arrays.py); None where there are none.
        source: where they came from, for people, without a path.
        samples: how many.
        sample_tokens: tokens of each.
        seed: of the text that the model writes itself, or of the pictures that are drawn.
    """

    text: str | None = None
    source: str = "self-generated"
    samples: int = 128
    sample_tokens: int = 512
    seed: int = 0
    pictures: str | None = None
    arrays: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether the user named a text, pictures or arrays."""
        return any(each is not None for each in (self.text, self.pictures, self.arrays))


@dataclass(frozen=True)
class Quantization:
    """How codes are found, beside what the scheme's name says.

    Attributes:
        calibration: the samples.
        head: how the output head is stored; `auto` is int8.
        embedding: how the token embedding is stored; `auto` is int4, or int8 where it is the head too.
        activation_order: columns with large inputs are rounded first; groups stay contiguous all the same.
        damping: share of the mean that is added to the diagonal of the inputs' second moments.
        feedback: share of the error of earlier layers that a layer takes back, 0 to 1.
        refinements: rounds of least-squares scales and coordinate descent after GPTQ.
        smaller_groups: a matrix whose rows the scheme's groups do not divide gets the largest that do, by halving.
        portable_scales: codes and scales such that every target holds the same ones: scales above zero, and one for each row
            of a table in 8 bits, as LiteRT wants them.
        target_bpw: the budget of a mixed scheme, bits per weight over all weights.
        max_bytes: the same as bytes of the package.
    """

    calibration: Calibration = field(default_factory=Calibration)
    head: Storage = "auto"
    embedding: Storage = "auto"
    activation_order: bool = True
    damping: float = 0.01
    feedback: float = 0.5
    refinements: int = 2
    smaller_groups: bool = False
    portable_scales: bool = False
    target_bpw: float | None = None
    max_bytes: int | None = None

    @property
    def has_budget(self) -> bool:
        """Whether one of the budgets is set."""
        return self.target_bpw is not None or self.max_bytes is not None

    def full(self) -> dict[str, Any]:
        """As JSON; `quantization_from_full` reads it back."""
        return asdict(self)


def embedding_bits(settings: Quantization, *, tied: bool, decoder: bool) -> int | None:
    """Bits of a code of the token embedding; None where it is kept. What `auto` is: the head's where it is that too."""
    return _table_bits(settings.embedding, 8 if tied or not decoder else 4)


def head_bits(settings: Quantization) -> int | None:
    """Bits of a code of an output head of its own; None where it is kept."""
    return _table_bits(settings.head, 8)


def _table_bits(storage: Storage, automatic: int) -> int | None:
    return {"auto": automatic, "int4": 4, "int8": 8}.get(storage)


def quantization_from_full(full: dict[str, Any]) -> Quantization:
    """The inverse of `Quantization.full`.

    Raises:
        UnusableInput: a value is out of range.
        TypeError: a field is missing or unknown.
    """
    quantization = Quantization(**{**full, "calibration": Calibration(**full["calibration"])})
    for name in ("head", "embedding"):
        if getattr(quantization, name) not in STORAGES:
            raise UnusableInput(
                f"{name} cannot be stored as {getattr(quantization, name)!r}; {', '.join(STORAGES)} can."
            )
    calibration = quantization.calibration
    if calibration.samples < 1 or calibration.sample_tokens < _FEWEST_SAMPLE_TOKENS:
        raise UnusableInput(
            f"Calibration takes at least 1 sample of at least {_FEWEST_SAMPLE_TOKENS} tokens; asked for are "
            f"{calibration.samples} of {calibration.sample_tokens}."
        )
    if quantization.target_bpw is not None and not 1 <= quantization.target_bpw <= 32:
        raise UnusableInput(f"A budget lies between 1 and 32 bits per weight, not at {quantization.target_bpw:g}.")
    if quantization.max_bytes is not None and quantization.max_bytes < 1:
        raise UnusableInput(f"A package cannot have {quantization.max_bytes} bytes; give a larger max_bytes.")
    if not 0 <= quantization.feedback <= 1 or not 0 < quantization.damping < 1 or quantization.refinements < 0:
        raise UnusableInput("feedback must lie in 0 to 1, damping between 0 and 1, and refinements not below 0.")
    return quantization
