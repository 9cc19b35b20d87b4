"""The two ways a command ends without success.

A message is one paragraph: what happened, where (file, tensor, operator), what to do.
"""

from __future__ import annotations

from compiler.installation import install_command


class EdgecError(Exception):
    """An end that edgec expected; its text is shown to the user as it is."""

    exit_code = 2


class UnusableInput(EdgecError):
    """Wrong use, or an input that cannot be worked with. Exit code 2."""

    exit_code = 2


class CheckFailed(EdgecError):
    """A check, a budget or a comparison failed. Exit code 1.

    `check` is the name that `--allow NAME` takes, where the check can be allowed.
    """

    exit_code = 1

    def __init__(self, check: str, message: str) -> None:
        super().__init__(message)
        self.check = check


def missing_extra(distribution: str, extra: str) -> UnusableInput:
    """The error for an optional library that is not installed; no extra brings one whose name is empty."""
    command = install_command(extra) if extra else f"pip install {distribution}"
    return UnusableInput(f"{distribution} is not installed, and this step needs it. Install it with: {command}")
