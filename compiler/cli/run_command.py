"""`edgec run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compiler.cli.display import print_json, print_table
from compiler.errors import UnusableInput
from compiler.model import IMAGE_CLASSIFICATION, QUESTION_ANSWERING
from compiler.package import Package, check_files, read_package
from runtimes.registry import only_evaluated, open_session
from runtimes.session import EncoderSession, LanguageSession
from runtimes.use import answer, classify, cosine, embed, generate, label_tokens, text_to_inputs


@click.command("run")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", "prompts", multiple=True, help="Text; two of them are compared by an embedding model.")
@click.option("--passage", help="The text in which a question-answering model looks for the answer to --prompt.")
@click.option("--image", type=click.Path(path_type=Path), help="Picture, for image-classification.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=128, show_default=True)
@click.option("--raw", is_flag=True, help="Do not put the prompt into the chat template.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    package: Path,
    prompts: tuple[str, ...],
    passage: str | None,
    image: Path | None,
    max_tokens: int,
    raw: bool,
    threads: int,
    as_json: bool,
) -> None:
    """Use PACKAGE once: generate, embed, classify or answer."""
    read = read_package(package)
    check_files(read)
    if not prompts and image is None:
        raise UnusableInput("There is nothing to run on. Add --prompt TEXT (or --image FILE for an image model).")
    if image is not None and read.model.task != IMAGE_CLASSIFICATION:
        raise UnusableInput(f"This package is for {read.model.task} and takes no pictures. Use --prompt TEXT.")
    if (passage is not None) != (read.model.task == QUESTION_ANSWERING):
        raise UnusableInput(
            f"This package is for {read.model.task}: "
            + (
                "it takes no passage."
                if passage is not None
                else "add --passage TEXT, in which to look for the answer."
            )
        )
    session = open_session(read, threads)
    if isinstance(session, LanguageSession):
        _generate(session, prompts, max_tokens, raw, as_json, timed=not only_evaluated(read))
    elif passage is not None:
        answers = [answer(read, session, prompt, passage) for prompt in prompts]
        rows = [[[each.text, f"{each.probability:.4f}"]] for each in answers]
        _show_all(rows, ["answer", "probability"], prompts, as_json)
    else:
        _encode(read, session, prompts, image, as_json)


def _generate(
    session: LanguageSession, prompts: tuple[str, ...], max_tokens: int, raw: bool, as_json: bool, timed: bool
) -> None:
    answers = []
    for prompt in prompts:
        show = None if as_json else lambda piece: click.echo(piece, nl=False)
        generated = generate(session, prompt, max_tokens, chat=not raw, on_text=show)
        answers.append({"prompt": prompt, "text": generated.text, "new_tokens": generated.new_tokens})
        if not as_json:
            click.echo("")
            speed = f"{generated.new_tokens / generated.seconds:.1f} tok/s with the prompt"
            click.echo(f"[{generated.new_tokens} tokens, {speed if timed else 'evaluated'}]", err=True)
    if as_json:
        print_json(answers)


def _encode(
    package: Package, session: EncoderSession, prompts: tuple[str, ...], image: Path | None, as_json: bool
) -> None:
    task = package.model.task
    if task == IMAGE_CLASSIFICATION:
        if image is None:
            raise UnusableInput("This package classifies pictures. Add --image FILE.")
        ranked = classify(package, session, _image_inputs(package, image))
        _show_all(
            [[[label, f"{share:.4f}"] for label, share in ranked]], ["label", "probability"], [image.name], as_json
        )
    elif task == "feature-extraction":
        vectors = [embed(package, session, prompt) for prompt in prompts]
        if as_json:
            print_json([[float(value) for value in vector] for vector in vectors])
        elif len(vectors) > 1:
            rows = [[prompts[i], f"{cosine(vectors[0], vectors[i]):.4f}"] for i in range(1, len(vectors))]
            print_table(f"Likeness to: {prompts[0]}", ["text", "cosine"], rows)
        else:
            head = ", ".join(f"{value:.4f}" for value in vectors[0][:6])
            click.echo(f"{len(vectors[0])} values: {head}, ... (--json prints all; a second --prompt compares)")
    elif task == "text-classification":
        tables = []
        for prompt in prompts:
            ranked = classify(package, session, text_to_inputs(package, session, prompt))
            tables.append([[label, f"{share:.4f}"] for label, share in ranked])
        _show_all(tables, ["label", "probability"], prompts, as_json)
    else:
        tables = [[list(pair) for pair in label_tokens(package, session, prompt)] for prompt in prompts]
        _show_all(tables, ["token", "label"], prompts, as_json)


def _image_inputs(package: Package, image: Path) -> dict[str, Any]:
    try:
        from PIL import Image
        from transformers import AutoImageProcessor

        with Image.open(image) as picture:
            processor = AutoImageProcessor.from_pretrained(package.folder, local_files_only=True, use_fast=False)
            return {"pixel_values": processor(picture.convert("RGB"), return_tensors="np")["pixel_values"]}
    except (OSError, ValueError) as error:
        raise UnusableInput(f"The picture {image} cannot be read: {error}.") from error
    except ImportError as error:
        raise UnusableInput(f"{error.name} is needed to read pictures: pip install pillow transformers.") from error


def _show_all(tables: list[list[list[str]]], columns: list[str], titles: Sequence[str], as_json: bool) -> None:
    """A table for each input; as JSON a list of rows, or with several inputs a list of such lists."""
    if as_json:
        documents = [[dict(zip(columns, row, strict=True)) for row in rows] for rows in tables]
        print_json(documents if len(documents) > 1 else documents[0])
        return
    for title, rows in zip(titles, tables, strict=True):
        print_table(title, columns, rows)
