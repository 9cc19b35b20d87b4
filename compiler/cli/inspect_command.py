"""`edgec inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import click

import edgec
from compiler.build import TYPE_FALLBACK
from compiler.cli.display import format_bytes, print_json, print_table
from compiler.cli.scheme_names import shorten
from compiler.cli.steps import ShownStages, shown_steps
from compiler.estimate import Estimate
from compiler.model import Geometry, Model
from compiler.stages.executor import LocalExecutor
from compiler.task import FUNCTION
from compiler.tensorflow_function import read_signature
from edgec import Capability


@click.command("inspect")
@click.argument("model")
@click.option("--task", help="The model's task, when its architecture does not tell.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(debug: bool, model: str, task: str | None, as_json: bool) -> None:
    """Tell what MODEL is, what it will take, and which targets take it."""
    with shown_steps(quiet=as_json) as steps:
        executor = LocalExecutor(watcher=ShownStages(steps), debug=debug)
        found = edgec.inspect(edgec.open_model(model, task=task, executor=executor))
    if as_json:
        print_json(_json(found.model, found.estimate, found.targets))
    else:
        _print(found.model, found.estimate, found.targets)


def _json(model: Model, estimated: Estimate, capabilities: Sequence[Capability]) -> dict[str, object]:
    return {
        "name": model.name,
        "source": model.source,
        "architecture": model.architecture,
        "task": model.task,
        "parameters": model.parameters,
        "licence": model.licence,
        "base_model": list(model.base_model),
        "geometry": asdict(model.geometry),
        "estimate": asdict(estimated),
        "targets": [asdict(each) for each in capabilities],
    }


def _print(model: Model, estimated: Estimate, capabilities: Sequence[Capability]) -> None:
    rows = [
        ["architecture", model.architecture],
        ["task", model.task],
        ["parameters", f"{model.parameters:,}"],
        ["stored as", ", ".join(sorted({tensor.dtype for tensor in model.tensors}))],
        *(_ports(model) if model.kind == FUNCTION else []),
        *([] if model.kind == FUNCTION else _sizes(model.geometry)),
        ["licence", model.licence or "not stated"],
    ]
    if estimated.kv_cache_bytes_per_1k_tokens:
        rows.append(["KV cache per 1k tokens", format_bytes(estimated.kv_cache_bytes_per_1k_tokens) + " (16 bit)"])
    print_table(model.name, ["", "what"], rows)
    memory = [[f"inference, {each.scheme}", format_bytes(each.inference_bytes)] for each in estimated.memory]
    memory += [[f"training, {what}", format_bytes(nbytes)] for what, nbytes in estimated.training]
    print_table("Memory (estimate: weights, 1k tokens of cache; activations come on top)", ["for", "bytes"], memory)
    print_table(
        "What each target makes of it",
        ["target", "package", "schemes, or why not"],
        [row for each in capabilities for row in _rows(each)],
    )
    if any(each.falling_back for each in capabilities):
        print(f"  * stores some tensors in another type: --allow {TYPE_FALLBACK}")


def _sizes(geometry: Geometry) -> list[list[str]]:
    return [
        ["layers, hidden size", f"{geometry.layers}, {geometry.hidden_size}"],
        ["heads, key-value heads", f"{geometry.heads}, {geometry.kv_heads}"],
        ["vocabulary, context", f"{geometry.vocabulary:,}, {geometry.context_length or '-'}"],
    ]


def _ports(model: Model) -> list[list[str]]:
    sides = zip(("input", "output"), read_signature(model.config, model.name), strict=True)
    return [
        [side, f"{port.name}: {port.dtype} ({', '.join(map(str, port.shape))})"]
        for side, ports in sides
        for port in ports
    ]


def _rows(capability: Capability) -> Iterator[list[str]]:
    """Schemes of equal bytes together, the largest first."""
    if not capability.schemes:
        yield [capability.target, "-", capability.why_not or ""]
        return
    together: dict[tuple[int, bool], list[str]] = {}
    for name, nbytes in zip(capability.schemes, capability.nbytes, strict=True):
        together.setdefault((nbytes or 0, name in capability.falling_back), []).append(name)
    target = capability.target
    for (nbytes, falls_back), names in sorted(together.items(), reverse=True):
        yield [target, format_bytes(nbytes) if nbytes else "-", shorten(names) + (" *" if falls_back else "")]
        target = ""
