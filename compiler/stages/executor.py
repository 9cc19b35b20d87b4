"""The one place where stages are found, run and kept: on this machine, each in a child process, results in the cache."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from compiler.digest import digest_code, tool_version
from compiler.errors import UnusableInput
from compiler.stages.cache import (
    Entry,
    cache_folder,
    cache_root,
    drop_entry,
    find_entry,
    is_whole,
    new_entry_folder,
    stage_environment,
    store_entry,
)
from compiler.stages.processor import processor
from compiler.stages.prune import keep_limit, limit_bytes, touch
from compiler.stages.shared import bring_entry, is_shared, require_shared, share_entry, shared_cache
from compiler.stages.stage import Stage, missing_file, stage_key, tool_versions
from compiler.stages.worker import Children, Ended, Progress, run_in_child

# Path, size, inode, and times of change of files, which tell that one was changed.
Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class Source:
    """What the user named, as stages read it.

    Attributes:
        path: where it lies.
        digest: of its content.
        stamp: its files as they were when they were hashed.
        check: a function, `module:function`, and what it is given beside the path; a stage's process calls it first.
    """

    path: Path
    digest: str
    stamp: Stamp = ()
    check: tuple[str, Mapping[str, Any]] | None = None


def stamp_of(files: Sequence[Path]) -> Stamp:
    """What tells later that one of these files was changed; to be taken before they are hashed.

    Raises:
        UnusableInput: one is gone.
    """
    try:
        found = [(file, file.stat()) for file in files]
    except OSError as error:
        raise UnusableInput(f"{Path(error.filename).name} cannot be read: {error.strerror}.") from error
    return tuple((str(file), s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for file, s in found)


Sources = Mapping[str, Source]


@dataclass(frozen=True)
class StageReport:
    """What a stage cost, and what was expected (compiler/needs.py). What it cost is None when it came from the cache."""

    label: str
    work: str
    recipe: str
    cached: bool
    seconds: float | None
    peak_rss_bytes: int | None
    expected_seconds: float | None = None
    expected_peak_bytes: int | None = None


class Watcher:
    """Told of what happens; the command line draws progress bars from it."""

    def reading(self) -> Progress | None:
        """The model's weights are hashed and looked through; return where the progress should go."""
        return None

    def started(self, stage: Stage, recipe: str) -> Progress | None:
        """A stage's child process starts; return where its progress should go."""
        return None

    def finished(self, stage: Stage, report: StageReport) -> None:
        """A stage is done, or was found in the cache."""


@dataclass(frozen=True)
class Results:
    """What came of stages: the entry of each by its key, and what each cost."""

    entries: Mapping[str, Entry]
    reports: tuple[StageReport, ...]


class Executor(Protocol):
    """What runs stages: it finds them in the cache, or runs them and keeps what came of it."""

    @property
    def watcher(self) -> Watcher: ...

    @property
    def debug(self) -> bool: ...

    def key(self, stage: Stage, sources: Sources) -> str:
        """The key of a stage's result where this runs it."""
        ...

    def tools(self, stage: Stage) -> dict[str, str]:
        """Versions of the tools of a stage and of those before it, as they are there."""
        ...

    def run_one(self, stage: Stage, sources: Sources, title: str) -> Entry:
        """The result of one stage."""
        ...

    def run(self, wanted: Sequence[tuple[str, Stage]], sources: Sources) -> Results:
        """The results of stages, each with what it is wanted for, and of all that they need."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Runs stages in child processes of this machine.

    Attributes:
        jobs: stages that may run at the same time.
        watcher: is told of stages.
        debug: pass on what the children print.
    """

    jobs: int = 1
    watcher: Watcher = field(default_factory=Watcher)
    debug: bool = False

    def version_of(self, distribution: str) -> str:
        """The version of a tool as it is installed where stages run."""
        return tool_version(distribution) or "absent"

    def key(self, stage: Stage, sources: Sources) -> str:
        """The key of a stage's result."""
        digests = {name: source.digest for name, source in sources.items()}
        machine = " ".join((platform.system(), platform.machine(), platform.mac_ver()[0], processor()))
        return stage_key(stage, digests, digest_code(), self.version_of, machine)

    def tools(self, stage: Stage) -> dict[str, str]:
        """Versions of the tools of a stage and of those before it, by their names."""
        return dict(sorted(tool_versions(stage, self.version_of).items()))

    def run_one(self, stage: Stage, sources: Sources, title: str) -> Entry:
        """The result of one stage."""
        key = self.key(stage, sources)
        results = self.run([(title, stage)], sources)
        entry = results.entries[key]
        # The last report is that of the stage itself; what was made just now has just been hashed.
        if not results.reports[-1].cached or is_whole(entry):
            return entry
        drop_entry(entry)
        return self.run([(title, stage)], sources).entries[key]

    def run(self, wanted: Sequence[tuple[str, Stage]], sources: Sources) -> Results:
        """Run every distinct stage that is needed and not in the cache, those without inputs first.

        Args:
            wanted: stages, each with what it is wanted for.
            sources: what the stages read, by name.

        Raises:
            EdgecError: the error of the first stage that failed; the others are ended.
        """
        limit_bytes()  # said wrong, it is refused before any work
        require_shared()
        ordered: dict[str, tuple[int, Stage, str]] = {}

        def collect(stage: Stage, title: str) -> int:
            # A waiting stage must never keep a ready one out.
            depth = 1 + max((collect(earlier, title) for earlier in stage.inputs.values()), default=-1)
            ordered.setdefault(self.key(stage, sources), (depth, stage, title))
            return depth

        for title, last in wanted:
            collect(last, title)
        to_do = [stage for key, (_, stage, _) in ordered.items() if find_entry(key) is None and not is_shared(key)]
        for stage in to_do:
            _require_machine(stage)
        _require_disk(to_do)
        jobs = _jobs_within_memory(to_do, self.jobs)
        futures: dict[str, Future[Entry]] = {}
        reports: list[StageReport] = []
        lock = threading.Lock()
        locks: dict[str, threading.RLock] = {}
        children = Children()

        def lock_of(key: str) -> threading.RLock:
            with lock:
                return locks.setdefault(key, threading.RLock())

        def work(key: str, stage: Stage, title: str) -> Entry:
            try:
                return finish(key, stage, title)
            except BaseException:
                # Whoever is next in this thread's queue must not start.
                children.end()
                raise

        known: dict[str, Entry] = {}

        def input_of(stage: Stage, title: str) -> Entry:
            """The result of an earlier stage, made again where its bytes are not those that were stored."""
            key = self.key(stage, sources)
            with lock_of(key):
                if key not in known:
                    entry = futures[key].result()
                    if not is_whole(entry):
                        drop_entry(entry)
                        entry = finish(key, stage, title)
                    known[key] = entry
                return known[key]

        def finish(key: str, stage: Stage, title: str) -> Entry:
            for each in stage.inputs.values():
                futures[self.key(each, sources)].result()
            entry, report = self._found_or_run(
                key, stage, title, sources, lambda: {n: input_of(e, title) for n, e in stage.inputs.items()}, children
            )
            if not report.cached:
                known[key] = entry
            with lock:
                reports.append(report)
                self.watcher.finished(stage, report)
            return entry

        with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
            try:
                for key, (_, stage, title) in sorted(ordered.items(), key=lambda item: item[1][0]):
                    futures[key] = pool.submit(work, key, stage, title)
                done, waiting = wait(futures.values(), return_when=FIRST_EXCEPTION)
                for future in waiting:
                    future.cancel()
                failures = [future.exception() for future in done if future.exception() is not None]
                # Those that were ended because another failed say nothing of why.
                failures.sort(key=lambda error: isinstance(error, Ended))
                if failures and failures[0] is not None:
                    raise failures[0]
            except BaseException:
                children.end()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if shared_cache() is not None or not all(report.cached for report in reports):
            keep_limit()
        return Results({key: future.result() for key, future in futures.items()}, tuple(reports))

    def _found_or_run(
        self,
        key: str,
        stage: Stage,
        title: str,
        sources: Sources,
        inputs_of: Callable[[], Mapping[str, Entry]],
        children: Children,
    ) -> tuple[Entry, StageReport]:
        made_of = tuple(sources[name].digest for name in stage.sources)
        entry = find_entry(key)
        if entry is not None:
            touch(entry.files.parent)
            share_entry(entry, made_of)
            return entry, StageReport(stage.label, stage.work, title, True, None, None)
        entry = bring_entry(key)
        if entry is not None:
            return entry, StageReport(stage.label, stage.work, title, True, None, None)
        is_sharing = shared_cache() is not None
        if is_sharing:
            # What was counted on is damaged there.
            _require_machine(stage)
            _require_disk([stage])
        inputs = inputs_of()
        _require_inputs(stage, inputs)
        with new_entry_folder() as folder:
            finished = run_in_child(
                stage.function,
                {
                    **{name: str(sources[name].path.resolve()) for name in stage.sources},
                    **{name: str(each.files) for name, each in inputs.items()},
                    "out": str(folder / "files"),
                    **stage.arguments,
                },
                label=stage.label,
                on_progress=self.watcher.started(stage, title),
                before=_checks(stage, sources),
                environment={**stage.environment, **_python_path(stage), **stage_environment(key)},
                debug=self.debug,
                children=children,
                forked="transformers" in stage.tools,
            )
            written = {file.relative_to(folder / "files").as_posix(): file for file in (folder / "files").rglob("*")}
            if (pattern := missing_file(stage.ensures, written)) is not None:
                raise UnusableInput(
                    f"The stage '{stage.label}' ended without writing {pattern}. Run again with --debug."
                )
            for name in stage.sources:
                _require_unchanged(sources[name])
            entry = store_entry(folder, key, finished.value, made_of)
        if is_sharing:
            share_entry(entry, made_of, replace=True)
        return entry, StageReport(stage.label, stage.work, title, False, finished.seconds, finished.peak_rss_bytes)


def _require_machine(stage: Stage) -> None:
    """Refuse a stage that this machine cannot run."""
    import psutil

    if stage.platform not in (None, sys.platform):
        raise UnusableInput(f"The stage '{stage.label}' runs on {stage.platform} only, and this is {sys.platform}.")
    memory = psutil.virtual_memory().total
    if stage.memory_bytes > memory:
        raise UnusableInput(
            f"The stage '{stage.label}' needs {stage.memory_bytes / 1e9:.1f} GB of memory, and this machine has "
            f"{memory / 1e9:.1f} GB. Use a larger machine."
        )


def _require_disk(stages: Sequence[Stage]) -> None:
    """Refuse stages whose results have no room where the cache is."""
    needed, free = sum(stage.disk_bytes for stage in stages), shutil.disk_usage(cache_folder("stages")).free
    if needed > free:
        raise UnusableInput(
            f"What is built on the way needs {needed / 1e9:.1f} GB of disk in {cache_root()}, and {free / 1e9:.1f} GB are "
            "free. Free some room, or point EDGEC_CACHE to another disk."
        )


def _jobs_within_memory(stages: Sequence[Stage], jobs: int) -> int:
    """How many of the stages may run at a time, so that the largest of them fit into memory together."""
    import psutil

    needs, free = sorted((stage.memory_bytes for stage in stages), reverse=True), psutil.virtual_memory().available
    return next((count for count in range(max(1, jobs), 1, -1) if sum(needs[:count]) <= free), 1)


def _checks(stage: Stage, sources: Sources) -> list[tuple[str, Mapping[str, Any]]]:
    """What is to be called before the stage: the check of each source that has one."""
    named = [(name, sources[name]) for name in stage.sources]
    return [
        (source.check[0], {name: str(source.path.resolve()), **source.check[1]})
        for name, source in named
        if source.check is not None
    ]


def _require_unchanged(source: Source) -> None:
    """Refuse what was made of files that were changed after they had been hashed."""
    if stamp_of([Path(name) for name, *_ in source.stamp]) != source.stamp:
        raise UnusableInput(
            f"{source.path.name} was changed while it was read, so that nothing made of it can be trusted. Build again."
        )


def _require_inputs(stage: Stage, inputs: Mapping[str, Entry]) -> None:
    for name, patterns in stage.requires.items():
        if (pattern := missing_file(patterns, inputs[name].digests)) is not None:
            raise UnusableInput(
                f"The stage '{stage.label}' needs {pattern} of '{stage.inputs[name].label}', which did not write it. "
                "Empty the cache with `edgec cache --clear` and build again."
            )


def _python_path(stage: Stage) -> dict[str, str]:
    """PYTHONPATH with the folders that the stage asks for before those that are there."""
    folders = []
    for function in stage.python_path:
        module, name = function.split(":")
        folders.append(str(getattr(importlib.import_module(module), name)()))
    kept = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([*folders, *([kept] if kept else [])])} if folders else {}
