"""Stage: one step of a build, as data. What runs it is an executor (compiler/stages/executor.py).

A stage's function is called in a process of its own as `function(**sources, **inputs, out=..., **arguments)`: `sources` are
paths of what the user named (most often `model`, a folder), `inputs` are the folders that earlier stages wrote, by the names
that the function gives its parameters, `out` is an empty folder. What it returns is JSON and is kept with the files.

A plan holds no path, no process and nothing of the machine that made it: where sources lie, which versions tools have and what
an environment needs beside constants is the executor's business.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.digest import digest_json


@dataclass(frozen=True)
class Stage:
    """A step of a build whose result is kept under a key.

    Attributes:
        label: for the table and the progress bar, e.g. `convert to GGUF`.
        function: `module:function`.
        arguments: JSON arguments.
        tools: distributions whose versions are part of the key.
        inputs: earlier stages, by the name of the parameter that takes their folder.
        requires: for an input, patterns of the files that it must hold.
        ensures: patterns of the files that this stage leaves in its folder.
        sources: names of what it reads of what the user named.
        environment: constant variables of the process. Not part of the key: what matters must be in `arguments` too.
        python_path: functions, `module:function`, that give a folder for the process's PYTHONPATH on the machine that runs it.
        machine_dependent: the result is for the machine that makes it, which is then a part of the key.
        platform: `sys.platform` of the machine that it needs; None for any.
        memory_bytes: the memory that the machine must have for it; 0 where that is not known.
        disk_bytes: the same of the disk that the cache is on.
    """

    label: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    inputs: Mapping[str, Stage] = field(default_factory=dict)
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensures: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("model",)
    environment: Mapping[str, str] = field(default_factory=dict)
    python_path: tuple[str, ...] = ()
    machine_dependent: bool = False
    platform: str | None = None
    memory_bytes: int = 0
    disk_bytes: int = 0

    @property
    def work(self) -> str:
        """What is done: the function, how it quantizes where it does, and whether it writes a text of its own."""
        method, calibration = self.arguments.get("method"), self.arguments.get("calibration")
        own = isinstance(calibration, Mapping) and calibration.get("source") == "self-generated"
        return " ".join((self.function, *((method,) if isinstance(method, str) else ()), *(("own",) if own else ())))

    def __post_init__(self) -> None:
        """Hold what is required of inputs to what they ensure.

        Raises:
            ValueError: an input does not promise a file that is required of it.
        """
        for name, patterns in self.requires.items():
            for pattern in patterns:
                if pattern not in self.inputs[name].ensures:
                    raise ValueError(f"{self.function} requires {pattern} of {name}, which does not ensure it")


def missing_file(patterns: tuple[str, ...], names: Mapping[str, object]) -> str | None:
    """The first pattern that no file name matches."""
    return next((pattern for pattern in patterns if not fnmatch.filter(list(names), pattern)), None)


def each_stage(stage: Stage) -> Iterator[Stage]:
    """The stage and all that come before it, those first; one that several need comes more than once."""
    for earlier in stage.inputs.values():
        yield from each_stage(earlier)
    yield stage


def tool_versions(stage: Stage, version_of: Callable[[str], str]) -> dict[str, str]:
    """Versions of the tools of a stage and of those before it."""
    return {name: version_of(name) for each in each_stage(stage) for name in each.tools}


def stage_key(
    stage: Stage, sources: Mapping[str, str], code: str, version_of: Callable[[str], str], machine: str = ""
) -> str:
    """The name of a stage's result: a digest of all that it depends on.

    Args:
        stage: the stage.
        sources: the digest of each source's content, by its name.
        code: the digest of edgec's own code.
        version_of: the version of a distribution where the stage runs.
        machine: what machine that is.
    """
    return digest_json(
        {
            "sources": {name: sources[name] for name in stage.sources},
            "code": code,
            "function": stage.function,
            "arguments": dict(stage.arguments),
            "tools": {name: version_of(name) for name in stage.tools},
            "machine": machine if stage.machine_dependent else None,
            "inputs": {
                name: stage_key(each, sources, code, version_of, machine) for name, each in stage.inputs.items()
            },
        }
    )
