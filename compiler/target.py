"""The contract between the build and a target: what it takes, and the stages that make a package.

A target is a module in `targets/` with these names:

    NAME: str                      as in a recipe
    EXTRA: str                     the pip extra that brings its tools
    SCHEMES: tuple[str, ...]       the schemes it takes
    OPTIONS: tuple[str, ...]       the `+option` names it takes
    VARIANTS: tuple[str, ...]      the `@variant` names it takes; empty when it has none
    ENGINES: tuple[str, ...]       the engines of which its packages have an account (compiler/placement.py)
    def refuse(model, recipe) -> str | None     why not, as a sentence, without importing anything heavy
    def plan(model, recipe) -> Stage            the last stage, which names the earlier ones that it needs

A stage's function runs in a child process as `function(model=..., inputs=[...], out=..., **arguments)`: `model` is the
model's folder, `inputs` are the folders that the earlier stages wrote, `out` is an empty folder. The last stage
returns `asdict(Lowered)`. Stages with equal keys are one stage: two GGUF recipes share their conversion, and a target
that must finish elsewhere (a compiler on another machine) ends with a stage that records what is left to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from compiler.digest import digest_code, digest_json, tool_version
from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """A step of a build that runs in its own process and whose result is cached.

    Attributes:
        label: for the table and the progress bar, e.g. `convert to GGUF`.
        function: `module:function`.
        arguments: JSON arguments, part of the key.
        tools: distributions whose versions are part of the key.
        inputs: stages whose output folders it reads.
        environment: variables to set in the child. Not part of the key: what matters must be in `arguments` too.
    """

    label: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    inputs: tuple[Stage, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def all_tools(self) -> dict[str, str]:
        """Versions of the tools of this stage and of those before it."""
        versions = {name: tool_version(name) or "absent" for name in self.tools}
        for stage in self.inputs:
            versions |= stage.all_tools()
        return versions

    def key(self, model_digest: str) -> str:
        """The cache key: model, code, function, arguments, tool versions, and the keys of the inputs."""
        return digest_json(
            {
                "model": model_digest,
                "code": digest_code(),
                "function": self.function,
                "arguments": dict(self.arguments),
                "tools": self.all_tools(),
                "inputs": [stage.key(model_digest) for stage in self.inputs],
            }
        )


def check_taken(target: ModuleType, model: Model, recipe: Recipe) -> None:
    """Refuse, before any work, what the target does not take.

    Raises:
        UnusableInput: with the reason and what would be taken.
    """
    if reason := reason_against(target, model, recipe):
        raise UnusableInput(f"{recipe} cannot be made of {model.name}: {reason}")


def reason_against(target: ModuleType, model: Model, recipe: Recipe) -> str | None:
    """Why `target` does not take `model` by `recipe`; None when it does."""
    if recipe.scheme.name not in target.SCHEMES:
        return f"the target {target.NAME} takes the schemes {', '.join(target.SCHEMES)}."
    for option in recipe.options:
        if option not in target.OPTIONS:
            known = ", ".join(target.OPTIONS) or "none"
            return f"the target {target.NAME} has no option +{option}; it has: {known}."
    if recipe.variant is not None and recipe.variant not in target.VARIANTS:
        known = ", ".join(f"@{name}" for name in target.VARIANTS) or "none"
        return f"the target {target.NAME} has no variant @{recipe.variant}; it has: {known}."
    return target.refuse(model, recipe)


def refuse_window(model: Model, recipe: Recipe) -> str | None:
    """Why not, where the runtime attends to all tokens (llama.cpp, GenAI), and no layer of the model does."""
    window, asked = model.attention_window, recipe.shapes.context_length
    if window is None or asked is None or asked <= window:
        return None
    return (
        f"every layer of {model.name} looks back {window} tokens, and the runtime would let it see all {asked}. "
        f"Ask for --context-length {window} or less."
    )
