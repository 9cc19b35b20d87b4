"""What a long command is doing: bars with the time left on a terminal; elsewhere a line when a step begins and ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from compiler.stages.executor import StageReport, Watcher
from compiler.stages.stage import Stage
from compiler.stages.worker import Progress

_LINE_EVERY_S = 60


@dataclass(frozen=True)
class Step:
    """A step that has begun: is told how far it is, and that it is done."""

    update: Progress
    end: Callable[[], None]


class Steps(Protocol):
    """Where steps are shown."""

    def begin(self, label: str, of: str) -> Step:
        """Show a step, of a recipe or a package."""
        ...

    def tell(self, line: str) -> None:
        """A line that stays."""
        ...


class Bars:
    """rich's progress display."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress

    def begin(self, label: str, of: str) -> Step:
        from rich.markup import escape

        named = "" if of in label else f" [dim]{escape(of)}[/dim]"
        task = self._progress.add_task(f"{escape(label)}{named}", total=None)
        return Step(
            lambda done, total: self._progress.update(task, completed=done, total=total),
            lambda: self._progress.update(task, total=1, completed=1),
        )

    def tell(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)


class Lines:
    """Lines on standard error, for logs."""

    def begin(self, label: str, of: str) -> Step:
        title = label if of in label else f"{label} ({of})"
        started = told = time.monotonic()
        self.tell(f"{title} ...")

        def update(done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= _LINE_EVERY_S and 0 < done < total:
                told = now
                self.tell(f"{title}: {done} of {total}, {time_in_words((now - started) * (total - done) / done)} left")

        return Step(update, lambda: self.tell(f"{title}: done in {time_in_words(time.monotonic() - started)}"))

    def tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Nothing:
    """For programs, which read JSON."""

    def begin(self, label: str, of: str) -> Step:
        return Step(lambda done, total: None, lambda: None)

    def tell(self, line: str) -> None:
        pass


def time_in_words(seconds: float) -> str:
    """Seconds below two minutes, then minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def shown_steps(quiet: bool = False) -> Iterator[Steps]:
    """Steps on standard error: bars where that is a terminal, lines where not, nothing when `quiet`."""
    if quiet:
        yield Nothing()
        return
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        yield Bars(progress)


class ShownStages(Watcher):
    """Tells of a build: a step for each stage."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self._running: dict[tuple[str, str], Step] = {}

    def reading(self) -> Progress | None:
        return self.steps.begin("check the weights", "").update

    def started(self, stage: Stage, recipe: str) -> Progress | None:
        step = self._running[(stage.label, recipe)] = self.steps.begin(stage.label, recipe)
        return step.update

    def finished(self, stage: Stage, report: StageReport) -> None:
        step = self._running.pop((report.label, report.recipe), None)
        if step is not None:
            step.end()
