"""The strings and conversations on which a runtime's text side is held to Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compiler import corpus
from compiler.time_limit import TEMPLATE_S, at_most
from runtimes.session import Message

_SHOWN = 60


def render_chats(tokenizer: Any) -> tuple[list[list[Any]], str | None]:
    """Conversations with their prompts, without those that the template itself refuses.

    And the error in which it ends where it takes none of them and refuses none: it is damaged.
    """
    from jinja2.exceptions import TemplateError

    chats: list[list[Any]] = []
    if not tokenizer.chat_template:
        return chats, None
    ends = set()
    for conversation in corpus.CONVERSATIONS:
        messages = [dict(message) for message in conversation]
        try:
            with at_most(TEMPLATE_S, "The model's chat template"):
                prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            ends.add(type(error).__name__)
            continue
        chats.append([messages, prompt])
    damaged = not chats and TemplateError.__name__ not in ends
    return chats, min(ends) if damaged and ends else None


def string_misses(
    encode: Callable[[str], Sequence[int] | None], strings: Sequence[tuple[str, Sequence[int]]], owner: str = "runtime"
) -> list[str]:
    """A sentence for each string that `encode` gives other ids than Hugging Face; one alone where it gives none."""
    misses = []
    for string, ids in strings:
        own = encode(string)
        if own is None:
            return ["tokenizer: the package has none"]
        if list(own) != list(ids):
            misses.append(
                f"tokenizer: {string[:_SHOWN]!r} is {_brief(own)} to the {owner}, {_brief(ids)} to Hugging Face"
            )
    return misses


def chat_misses(
    render: Callable[[Sequence[Message]], str | None], chats: Sequence[tuple[Sequence[Message], str]]
) -> list[str]:
    """A sentence for each conversation that is rendered another way than by Hugging Face."""
    misses = []
    for messages, prompt in chats:
        rendered = render(messages)
        if rendered != prompt:
            shown = f"{rendered[:80]!r}" if rendered is not None else "nothing"
            misses.append(f"chat template: the runtime renders {shown}, Hugging Face {prompt[:80]!r}")
    return misses


def _brief(ids: Sequence[int]) -> str:
    return f"{list(ids)[:8]}{'...' if len(ids) > 8 else ''}"
