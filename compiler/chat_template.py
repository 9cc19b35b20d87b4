"""Rendering a model's chat template: within a limit of time, and with sentences for the ways in which it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from compiler.errors import UnusableInput
from compiler.time_limit import TEMPLATE_S, at_most


@contextmanager
def rendering() -> Iterator[None]:
    """Around a call that renders a conversation.

    Raises:
        UnusableInput: the template refuses it, or ends in an error.
        TooSlowError: it does not end.
    """
    from jinja2.exceptions import TemplateError

    try:
        with at_most(TEMPLATE_S, "The chat template"):
            yield
    except (TemplateError, TypeError, ValueError, RecursionError) as error:
        if type(error) is TemplateError:
            # The template's own refusal, in its words.
            raise UnusableInput(f"The chat template does not take this conversation: {error!s:.200}") from error
        raise UnusableInput(
            f"The chat template ends in an error ({type(error).__name__}) for this conversation. Correct the model's template "
            "and build again, or leave it out by --raw."
        ) from error
