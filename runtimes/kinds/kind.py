"""Kind: how models of a family of tasks are used, as data. One file a kind; whatever differs between kinds is said there.

Functions that need the model (`expect`) run in a process of their own and are named by strings; a kind's file imports nothing
that a device does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.model import Model
from compiler.package import Package
from compiler.recipe import Shapes
from runtimes.session import Session
from runtimes.workload import Workload

Round = dict[str, list[float]]
Samples = Mapping[str, Sequence[Sequence[float]]]
Outputs = Mapping[str, NDArray[np.float32]]
Figures = dict[str, float | int | str | None]


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample quantile, linear between neighbours."""
    return float(np.quantile(np.asarray(samples, np.float64), share))


def percentile_ms(samples: Sequence[float], share: float) -> float | None:
    """The quantile of seconds, in milliseconds; None where there are too few samples for one beyond it."""
    return 1e3 * percentile(samples, share) if len(samples) * (1 - share) >= 1 - _ROUNDING else None


_ROUNDING = 1e-9


@dataclass(frozen=True)
class Column:
    """A figure in tables: its key, its heading, the decimals that are shown, and what it is multiplied with for that."""

    key: str
    title: str
    digits: int
    factor: float = 1.0

    def show(self, value: float | None) -> str:
        """The figure for people; an exponent where the decimals would show nothing."""
        if value is None:
            return "-"
        scaled = value * self.factor
        hidden = scaled != 0 and abs(scaled) < 0.5 * 10**-self.digits
        return f"{scaled:.2g}" if hidden else f"{scaled:,.{self.digits}f}"


@dataclass(frozen=True)
class Expectation:
    """The stage that writes what the Reference says.

    Attributes:
        function: `module:function`, called with the model's folder, an empty folder and the arguments.
        arguments: JSON.
        tools: distributions that have a say.
        environment: constant variables of the process.
    """

    function: str
    arguments: dict[str, Any]
    tools: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What a package said.

    Attributes:
        figures: distances from the Reference.
        text_misses: a sentence for each miss on the side of text.
        from_stored: the distance from what its stored weights compute in torch, where that was asked.
    """

    figures: Figures
    text_misses: tuple[str, ...] = ()
    from_stored: float | None = None


@dataclass(frozen=True)
class Compared:
    """A figure of quality that runs are compared by.

    Attributes:
        key: the figure.
        floor: the distance below which a difference is noise.
        from_one: the distance is what the figure lacks to 1.
    """

    key: str
    floor: float
    from_one: bool = False

    def distance(self, value: float | None) -> float | None:
        """The distance that a figure tells; smaller is better."""
        return 1 - value if self.from_one and value is not None else value


@dataclass(frozen=True)
class Grade:
    """A word for how near a package is to the fp32 model, and what its figures must hold to deserve it."""

    word: str
    limits: Mapping[str, float]


@dataclass(frozen=True)
class StoredCheck:
    """How a package is held to what its stored weights compute in torch.

    Attributes:
        function: `module:function` of a stage that is given `model`, `package`, `expected` (what the Reference wrote) and
            `task`, and writes `stored.json` and what `probe` compares with.
        figure: the distance, in words.
        factor: how many times what the runtime's rounding explains the distance may be.
        floor: what it may be beside that, for a runtime that computes in float32.
        floor_float16: the same for one that computes parts in float16.
    """

    function: str
    figure: str
    factor: float
    floor: float
    floor_float16: float


@dataclass(frozen=True)
class Prepared:
    """A session made ready to be measured.

    Attributes:
        timed: one timed round: seconds by the name of what was timed.
        warm: one round before the first that counts.
        workload: what is really run.
        outputs: what comes of the input that is timed, by name: what one device computes and another must too.
    """

    timed: Callable[[], Round]
    warm: Callable[[], Round]
    workload: Workload
    outputs: Callable[[], Outputs]


@dataclass(frozen=True)
class Chart:
    """The axes of the report's charts.

    Attributes:
        models: what these packages are called in titles.
        time: the summary's key for the axis of time, in milliseconds, and its title.
        distance: the figure for the axis of distance, and its title.
        from_one: the distance is what the figure lacks to 1.
        samples: the samples of the chart of times, and its title.
    """

    models: str
    time: tuple[str, str]
    distance: tuple[str, str]
    samples: tuple[str, str]
    from_one: bool = False


def _nothing(text: str) -> None:
    pass


@dataclass(frozen=True)
class Request:
    """What a user asks of a package.

    Attributes:
        prompts: texts.
        passage: the text in which an answer is looked for, or the second one of a pair.
        image: a picture.
        max_tokens: tokens to generate at most.
        chat: put prompts into the chat template, where there is one.
        timed: whether seconds mean anything here.
        tell: is given pieces of a text as they come.
        note: is given remarks.
        prompt_name: which of the prompts of an embedding model goes before the texts; None for its default.
        messages: in the place of prompts, what a user says in a conversation, one after the other.
        inputs: arrays in a .npz file.
    """

    prompts: tuple[str, ...] = ()
    passage: str | None = None
    image: Path | None = None
    max_tokens: int = 128
    chat: bool = True
    timed: bool = True
    tell: Callable[[str], None] = _nothing
    note: Callable[[str], None] = _nothing
    prompt_name: str | None = None
    messages: Iterable[str] | None = None
    inputs: Path | None = None


@dataclass(frozen=True)
class Table:
    """Rows for people."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """What a package answered: for programs, as tables, and in one line."""

    document: Any
    line: str
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Kind:
    """How models of a family of tasks are used.

    Attributes:
        name: its file's name.
        title: heading of its tables.
        expect: what the Reference is asked, for shapes, a file of the user's or None, and at most so many tokens of it.
        probe: a session beside what the Reference wrote into a folder, and what the stored weights' stage wrote into
            another, where there is one; the last argument is told of progress.
        grades: the words for quality, the best first.
        limited: the names of limits, and the figure that each limits; they begin with `max_` or `min_`.
        figures: what verify found, for tables.
        prepare: a session made ready to be measured.
        timed: what is judged and compared: the name in comparisons, and the samples' name; the first is judged.
        summarize: figures of all samples; the last argument is the memory bandwidth in bytes per second, None where unknown.
        speed: those figures, for tables.
        compared: figures of quality that runs are compared by.
        chart: the axes of the report's charts.
        apart: how far outputs are from others of the same package and input, in the figure of `stored` where there is one.
        check: raise UnusableInput for a request that does not suit the package.
        use: answer a request.
        wrap: what stands between a session and whoever uses it.
        stored: how packages are held to their stored weights; None where they are not.
        reference: what the fp32 model in a folder makes of the input that is timed: what a package for another machine alone
            is held to there. None where there are no such packages.
        only_with_text: figures that mean something only on a text of the user's.
    """

    name: str
    title: str
    expect: Callable[[Model, Shapes, Path | None, int], Expectation]
    probe: Callable[[Any, Package, Path, Path | None, Callable[[int, int], None]], Findings]
    grades: tuple[Grade, ...]
    limited: Mapping[str, str]
    figures: tuple[Column, ...]
    prepare: Callable[[Any, Package, Workload], Prepared]
    timed: tuple[tuple[str, str], ...]
    summarize: Callable[[Samples, Workload, Package, float | None], Figures]
    speed: tuple[Column, ...]
    compared: tuple[Compared, ...]
    chart: Chart
    apart: Callable[[Outputs, Outputs], float]
    check: Callable[[Package, Request], None]
    use: Callable[[Package, Any, Request], Outcome]
    wrap: Callable[[Any, Package], Session] = field(default=lambda session, package: session)
    stored: StoredCheck | None = None
    reference: Callable[[Package, Path, Workload], Outputs] | None = None
    only_with_text: tuple[str, ...] = ()
