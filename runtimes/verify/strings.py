"""The strings and conversations on which a runtime's text side is held to Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compiler import corpus
from compiler.time_limit import TEMPLATE_S, at_most
from runtimes.session import Message

_SHOWN = 60


def render_chats(tokenizer: Any) -> list[list[Any]]:
    """Conversations with their prompts; those that the template itself refuses are left out."""
    from jinja2.exceptions import TemplateError

    chats: list[list[Any]] = []
    if not tokenizer.chat_template:
        return chats
    for conversation in corpus.CONVERSATIONS:
        messages = [dict(message) for message in conversation]
        try:
            with at_most(TEMPLATE_S, "The model's chat template"):
                prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            continue
        chats.append([messages, prompt])
    return chats


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
