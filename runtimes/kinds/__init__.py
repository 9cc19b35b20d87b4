"""The kinds of models, a file or folder each; a row of compiler/task.py names it."""

from __future__ import annotations

import importlib
from functools import cache

from compiler.task import find_task
from runtimes.kinds.kind import Kind


@cache
def find_kind(name: str) -> Kind:
    """The kind of that name. ModuleNotFoundError when there is no such file."""
    kind: Kind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind


def kind_of_task(task: str) -> Kind:
    """The kind of a task.

    Raises:
        UnusableInput: there is no such task.
    """
    return find_kind(find_task(task).kind)
