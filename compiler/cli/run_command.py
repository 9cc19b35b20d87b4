"""`edgec run`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

import edgec
from compiler.cli.display import print_json, print_table
from compiler.cli.trust_option import trust_option
from compiler.errors import UnusableInput
from compiler.recipe import LARGEST, MOST_THREADS
from compiler.task import GENERATION, find_task
from runtimes.registry import evaluator_of, only_evaluated

_LONGEST_INPUT = 1 << 24


@click.command("run")
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--prompt",
    "prompts",
    multiple=True,
    help="Text, - for standard input; two are compared by an embedding model. Without one a language model chats.",
)
@click.option(
    "--passage", help="The text in which the answer to --prompt is looked for; for a reranker the second of the pair."
)
@click.option("--prompt-name", help="Which of an embedding model's own prompts goes before --prompt, such as query.")
@click.option("--image", type=click.Path(path_type=Path), help="Picture, for image-classification.")
@click.option("--inputs", type=click.Path(path_type=Path), help="An .npz of arrays, for a TensorFlow function.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--raw", is_flag=True, help="Do not put the prompt into the chat template.")
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), default=2, show_default=True)
@click.option("--context-length", type=click.IntRange(1, LARGEST), help="Tokens that a language model is to hold.")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    package: Path,
    prompts: tuple[str, ...],
    passage: str | None,
    prompt_name: str | None,
    image: Path | None,
    inputs: Path | None,
    max_tokens: int,
    raw: bool,
    threads: int,
    context_length: int | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Use PACKAGE: generate, chat, embed, classify or answer."""
    opened = edgec.open_package(package)
    prompts = tuple(_read_input() if prompt == "-" else prompt for prompt in prompts)
    chats = not prompts and find_task(opened.model.task).kind == GENERATION and passage is None and image is None
    chats = chats and inputs is None
    told: list[str] = []

    def tell(piece: str) -> None:
        told.append(piece)
        if not as_json:
            click.echo(piece, nl=False)

    def note(text: str) -> None:
        click.echo(text, err=True)

    timed = not only_evaluated(opened)
    if not timed:
        note(f"{opened.title} is computed by {evaluator_of(opened)}.")
    if chats and (raw or as_json):
        raise UnusableInput("A chat has a template and no JSON. Add --prompt TEXT, or leave --raw and --json out.")
    messages = _spoken() if chats else None
    request = edgec.Request(
        prompts, passage, image, max_tokens, not raw, timed, tell, note, prompt_name, messages, inputs
    )
    outcome = edgec.use(opened, request, threads=threads, context_length=context_length, trust=trust)
    if as_json:
        print_json(outcome.document)
        return
    for table in outcome.tables:
        print_table(table.title, table.columns, table.rows)
    if not outcome.tables and not told:
        click.echo(outcome.line)


def _read_input() -> str:
    """All of standard input.

    Raises:
        UnusableInput: it is empty, or no text.
    """
    try:
        text = sys.stdin.buffer.read(_LONGEST_INPUT).decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UnusableInput("Standard input is no text in UTF-8.") from None
    if not text:
        raise UnusableInput("Standard input is empty, and --prompt - reads the prompt there.")
    return text


def _spoken() -> Iterator[str]:
    """The lines that a user types, until the end of input or an empty line."""
    typed = sys.stdin.isatty()
    if typed:
        click.echo("Type a message; an empty line or Ctrl-D ends the chat.", err=True)
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line.strip()
