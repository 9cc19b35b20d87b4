"""Using a decoder for what it is made for: it continues a prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from compiler.errors import UnusableInput
from compiler.package import Package
from runtimes.kinds.kind import Outcome, Request
from runtimes.session import GenerationSession, Message


def greedy_tokens(session: GenerationSession, prompt: Sequence[int]) -> Iterator[int]:
    """The most probable token after the prompt, and after each that came, without end; ends of text do not stop it."""
    session.reset()
    token = int(session.extend(prompt).argmax())
    while True:
        yield token
        token = int(session.extend((token,)).argmax())


@dataclass(frozen=True)
class Generated:
    """A generated text; `seconds` counts from the prompt's first token to the last new one."""

    text: str
    new_tokens: int
    seconds: float


def generate(
    session: GenerationSession,
    prompt: str,
    max_tokens: int,
    *,
    chat: bool = True,
    earlier: Sequence[Message] = (),
    on_text: Callable[[str], None] = lambda text: None,
) -> Generated:
    """Continue `prompt` greedily until an end of text or `max_tokens`.

    With `chat` the prompt goes into the package's chat template, when it has one, after the `earlier` messages. `on_text` is
    given each new piece of text as soon as it is whole characters.

    Raises:
        UnusableInput: the prompt does not fit the context.
    """
    text = session.text
    rendered = text.render_chat([*earlier, {"role": "user", "content": prompt}]) if chat else None
    # A chat template writes the begin token itself.
    ids = text.encode(rendered) if rendered is not None else [*text.begin, *text.encode(prompt)]
    room = session.context_length - len(ids)
    if not ids or room < 1:
        raise UnusableInput(f"The prompt has {len(ids)} tokens; the package takes 1 to {session.context_length - 1}.")
    ends = text.ends
    started = time.perf_counter()
    new: list[int] = []
    shown = ""
    for _, token in zip(range(min(max_tokens, room)), greedy_tokens(session, ids), strict=False):
        if token in ends:
            break
        new.append(token)
        so_far = text.decode(new)
        if not so_far.endswith("\ufffd"):
            on_text(so_far[len(shown) :])
            shown = so_far
    return Generated(text.decode(new) if new else "", len(new), time.perf_counter() - started)


def check(package: Package, request: Request) -> None:
    """A language model takes prompts and nothing else."""
    for name, given in (("pictures", request.image), ("passage", request.passage), ("arrays", request.inputs)):
        if given is not None:
            raise UnusableInput(f"This package is for {package.model.task} and takes no {name}. Use --prompt TEXT.")
    if not request.prompts and request.messages is None:
        raise UnusableInput("There is nothing to run on. Add --prompt TEXT.")


def converse(
    session: GenerationSession,
    messages: Iterable[str],
    max_tokens: int,
    tell: Callable[[str], None],
    note: Callable[[str], None],
) -> None:
    """Answer messages one after the other; the oldest turns are forgotten where the context is too short for all.

    Raises:
        UnusableInput: a message alone does not fit the context.
    """
    earlier: list[Message] = []
    for message in messages:
        while True:
            try:
                made = generate(session, message, max_tokens, earlier=earlier, on_text=tell)
                break
            except UnusableInput:
                if not earlier:
                    raise
                note("[the first turn no longer fits the context and is forgotten]")
                del earlier[:2]
        tell("\n")
        earlier += [{"role": "user", "content": message}, {"role": "assistant", "content": made.text}]


def use(package: Package, session: GenerationSession, request: Request) -> Outcome:
    """Continue each prompt, or answer messages as they come."""
    if request.messages is not None:
        converse(session, request.messages, request.max_tokens, request.tell, request.note)
        return Outcome([], "")
    answers = []
    for prompt in request.prompts:
        made = generate(session, prompt, request.max_tokens, chat=request.chat, on_text=request.tell)
        answers.append({"prompt": prompt, "text": made.text, "new_tokens": made.new_tokens})
        request.tell("\n")
        speed = f"{made.new_tokens / made.seconds:.1f} tok/s with the prompt" if request.timed else "evaluated"
        request.note(f"[{made.new_tokens} tokens, {speed}]")
    return Outcome(answers, " ".join(str(answers[0]["text"]).split()))
