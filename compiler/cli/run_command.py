"""`edgec run`."""

from __future__ import annotations

from pathlib import Path

import click

import edgec
from compiler.cli.display import print_json, print_table
from compiler.cli.trust_option import trust_option
from compiler.recipe import LARGEST
from runtimes.registry import only_evaluated


@click.command("run")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", "prompts", multiple=True, help="Text; two of them are compared by an embedding model.")
@click.option(
    "--passage", help="The text in which the answer to --prompt is looked for; for a reranker the second of the pair."
)
@click.option("--prompt-name", help="Which of an embedding model's own prompts goes before --prompt, such as query.")
@click.option("--image", type=click.Path(path_type=Path), help="Picture, for image-classification.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--raw", is_flag=True, help="Do not put the prompt into the chat template.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--context-length", type=click.IntRange(1, LARGEST), help="Tokens that a language model is to hold.")
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    package: Path,
    prompts: tuple[str, ...],
    passage: str | None,
    prompt_name: str | None,
    image: Path | None,
    max_tokens: int,
    raw: bool,
    threads: int,
    context_length: int | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Use PACKAGE once: generate, embed, classify or answer."""
    opened = edgec.open_package(package)
    told: list[str] = []

    def tell(piece: str) -> None:
        told.append(piece)
        if not as_json:
            click.echo(piece, nl=False)

    def note(text: str) -> None:
        click.echo(text, err=True)

    timed = not only_evaluated(opened)
    request = edgec.Request(prompts, passage, image, max_tokens, not raw, timed, tell, note, prompt_name)
    outcome = edgec.use(opened, request, threads=threads, context_length=context_length, trust=trust)
    if as_json:
        print_json(outcome.document)
        return
    for table in outcome.tables:
        print_table(table.title, table.columns, table.rows)
    if not outcome.tables and not told:
        click.echo(outcome.line)
