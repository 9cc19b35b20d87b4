"""What a board is told to be, and how long is waited for it, by a shell that says what the test wants."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from compiler.errors import UnusableInput
from runtimes.devices.board import shell as shell_module
from runtimes.devices.board.board import Board
from runtimes.devices.board.shell import ConnectionLostError, TimeUpError, patiently


class _Said:
    """A shell on a machine that answers every script with the same words."""

    title = "ssh://pi@board"

    def __init__(self, words: str) -> None:
        self._words = words

    def run(self, script: str, given: object = b"", *, seconds: float = 60) -> tuple[int, bytes, str]:
        return 0, self._words.encode(), ""

    def follow(self, script: str) -> object:
        raise AssertionError("nothing is followed")


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("/usr/bin/python3 3 11 32", ("a system of 32 bits", "Install the 64-bit one")),
        ("/usr/bin/python3 3 9 64", ("no Python of 3.11 or newer", "found: 3.9")),
        ("/usr/bin/python3 3 11", ("answers nonsense",)),
    ],
)
def test_a_board_that_cannot_serve_says_why(python: str, words: tuple[str, ...]) -> None:
    """A kernel of 64 bits may carry a system of 32, whose processor is called aarch64 all the same."""
    with pytest.raises(UnusableInput) as refused:
        _ = Board(_Said(f"Linux\naarch64\nboot\n{python}\n")).machine  # type: ignore[arg-type]
    for word in words:
        assert word in str(refused.value)


def test_a_board_of_64_bits_is_taken() -> None:
    machine = Board(_Said("Linux\naarch64\nboot\n/usr/bin/python3 3 12 64\n")).machine  # type: ignore[arg-type]
    assert (machine.machine, machine.version, machine.python) == ("aarch64", (3, 12), "/usr/bin/python3")


def _steps(*ends: Callable[[], int]) -> Callable[[], int]:
    left = list(ends)
    return lambda: left.pop(0)()


def _lost_after(seconds: float, error: type[Exception]) -> Callable[[], int]:
    def step() -> int:
        time.sleep(seconds)
        raise error

    return step


def test_a_step_that_ran_for_long_before_the_way_was_cut_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "PATIENCE_S", 0.2)
    monkeypatch.setattr(shell_module, "PAUSE_S", 0.0)
    shell = _Said("")
    assert patiently(shell, _steps(_lost_after(0.4, ConnectionLostError), lambda: 7)) == 7  # type: ignore[arg-type]
    with pytest.raises(UnusableInput, match="had not ended after"):
        patiently(shell, _steps(_lost_after(0.4, TimeUpError)))  # type: ignore[arg-type]
    with pytest.raises(UnusableInput, match="was cut for"):
        patiently(shell, _lost_after(0.05, ConnectionLostError))  # type: ignore[arg-type]
