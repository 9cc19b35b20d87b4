"""Passes of the calibration samples through parts of a network: its front, one block, a block up to one of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compiler.errors import UnusableInput
from compiler.quantize.blocks.activations import Activations
from compiler.quantize.blocks.network import Layer, Network, Stop, layers_of, weight_of


@dataclass(frozen=True)
class Call:
    """How the network calls a block: its arguments after the hidden states, and whether it answers with a tuple."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's hidden states for `hidden` (samples, positions, size)."""
        result = block(hidden, *self.args, **self.kwargs)
        return result[0] if isinstance(result, tuple) else result


class _Recorder(nn.Module):
    """Stands where a block stood: keeps what it is called with and hands the hidden states on."""

    def __init__(self, block: nn.Module, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.hidden: Tensor | None = None
        self.replacement: Tensor | None = None
        self.call: Call | None = None
        for name in ("attention_type", "layer_type", "is_sliding"):
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.hidden = hidden
        kept = {key: value for key, value in kwargs.items() if key not in ("past_key_values", "use_cache")}
        self.call = Call(args, kept)
        hidden = hidden if self.replacement is None else self.replacement
        return (hidden,) if self.as_tuple else hidden


@contextlib.contextmanager
def hollow(network: Network, as_tuple: bool = False) -> Iterator[list[_Recorder]]:
    """Inside, the network's blocks are recorders."""
    blocks = list(network.blocks)
    recorders = [_Recorder(block, as_tuple) for block in blocks]
    for number, recorder in enumerate(recorders):
        network.blocks[number] = recorder
    try:
        yield recorders
    finally:
        for number, block in enumerate(blocks):
            network.blocks[number] = block


def run_front(network: Network, inputs: dict[str, Tensor]) -> Tensor:
    """What the front makes of `inputs` (samples first)."""
    hidden = _record(network, inputs)[0].hidden
    assert hidden is not None
    return hidden


def record_calls(network: Network, inputs: dict[str, Tensor]) -> list[Call]:
    """How the front calls each block for the first sample of `inputs`; masks for one sample do for any number."""
    recorders = _record(network, {name: value[:1] for name, value in inputs.items()})
    return [recorder.call for recorder in recorders if recorder.call is not None]


def _record(network: Network, inputs: dict[str, Tensor]) -> list[_Recorder]:
    for as_tuple in (False, True):
        with hollow(network, as_tuple) as recorders, torch.no_grad():
            with contextlib.suppress(Stop), _stopping_after(recorders[-1]):
                try:
                    network.module(**inputs, **_no_cache(network))
                except (AttributeError, IndexError, TypeError, RuntimeError, ValueError):
                    if as_tuple:
                        raise
            if all(recorder.call is not None for recorder in recorders):
                shapes = {tuple(recorder.hidden.shape) for recorder in recorders if recorder.hidden is not None}
                if len(shapes) == 1:
                    return recorders
    raise UnusableInput(
        f"The blocks of {type(network.module).__name__} do not hand hidden states from one to the next."
    )


def _no_cache(network: Network) -> dict[str, Any]:
    return {"use_cache": False} if getattr(network.module.config, "use_cache", None) is not None else {}


@contextlib.contextmanager
def _stopping_after(module: nn.Module) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Stop

    handle = module.register_forward_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def run_tail(network: Network, inputs: dict[str, Tensor], hidden: Tensor) -> Any:
    """What the network answers when its last block has left `hidden`."""
    with hollow(network) as recorders, torch.no_grad():
        recorders[-1].replacement = hidden
        return network.module(**inputs, **_no_cache(network))


def head_inputs(network: Network, inputs: dict[str, Tensor], hidden: Tensor, head: nn.Module) -> Tensor:
    """The inputs of the head when the last block has left `hidden`."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        caught.append(args[0])
        raise Stop

    handle = head.register_forward_pre_hook(catch)
    try:
        with contextlib.suppress(Stop):
            run_tail(network, inputs, hidden)
    finally:
        handle.remove()
    return caught[0]


@dataclass(frozen=True)
class Group:
    """Layers of a block with the same input, which are quantized together.

    Attributes:
        layers: in the order in which they run.
        feeds_only_next: what the layers give goes into the next group's input and nowhere else, so that a pass which
            knows that input need not run them (queries, keys and values before the output projection, for one).
        silences_attention: nor the attention in between.
    """

    layers: tuple[Layer, ...]
    feeds_only_next: bool = False
    silences_attention: bool = False


Given = Sequence[tuple[Group, Tensor]]


def find_groups(network: Network, block: str, call: Call, hidden: Tensor) -> tuple[Group, ...]:
    """The groups of a filled block in the order in which they run, from passes of `hidden` (samples, positions, size)."""
    seen: list[tuple[Layer, Tensor]] = []
    watch = [(layer, partial(_note, seen, layer)) for layer in layers_of(network, block)]
    expected = run_block(network, block, call, hidden, watch=watch)
    found: list[tuple[Tensor, list[Layer]]] = []
    for layer, given in seen:
        if found and found[-1][0].data_ptr() == given.data_ptr() and found[-1][0].shape == given.shape:
            found[-1][1].append(layer)
        else:
            found.append((given, [layer]))
    groups = [Group(tuple(layers)) for _, layers in found]
    assert expected is not None
    for number in range(len(groups) - 1):
        known = [(groups[number + 1], found[number + 1][0])]
        for silent in (True, False):
            only = replace(groups[number], feeds_only_next=True, silences_attention=silent)
            result = run_block(network, block, call, hidden, skip=[only], given=known)
            if result is not None and torch.allclose(result, expected, 1e-5, 1e-5 * float(expected.abs().max())):
                groups[number] = only
                break
    return tuple(groups)


def _note(seen: list[tuple[Layer, Tensor]], layer: Layer, given: Tensor) -> None:
    seen.append((layer, given))


def run_block(
    network: Network,
    block: str,
    call: Call,
    hidden: Tensor,
    *,
    watch: Sequence[tuple[Layer, Callable[[Tensor], None]]] = (),
    stop_at: Layer | None = None,
    skip: Sequence[Group] = (),
    given: Given = (),
) -> Tensor | None:
    """One pass of a filled block; None when it stopped.

    Args:
        network: the network.
        block: the block's name.
        call: how it is called.
        hidden: (samples, positions, size).
        watch: layers, and who is told their inputs as (tokens, size).
        stop_at: end when this layer has been given its input.
        skip: groups whose layers are not run; they give zeros.
        given: groups with the inputs, (tokens, size), that their layers take in place of those that reach them.
    """
    handles = []
    for layer, tell in watch:

        def note(_: nn.Module, args: tuple[Tensor, ...], layer: Layer = layer, tell: Any = tell) -> None:
            tell(args[0].reshape(-1, args[0].shape[-1]))
            if layer is stop_at:
                raise Stop

        handles.append(layer.module.register_forward_pre_hook(note))
    with contextlib.ExitStack() as stack, torch.no_grad():
        for handle in handles:
            stack.callback(handle.remove)
        for group in skip:
            for layer in group.layers:
                _answer(stack, layer, None)
        for group, inputs in given:
            for layer in group.layers:
                _answer(stack, layer, inputs)
        if any(group.silences_attention for group in skip):
            stack.enter_context(_no_attention())
        try:
            return call.run(network.module.get_submodule(block), hidden)
        except Stop:
            return None


def _answer(stack: contextlib.ExitStack, layer: Layer, inputs: Tensor | None) -> None:
    """Let a layer answer from `inputs`, or with zeros, whatever reaches it."""
    module, forward = layer.module, type(layer.module).forward
    outputs = weight_of(module).shape[1 if layer.transposed else 0]

    def answer(reached: Tensor) -> Tensor:
        if inputs is None:
            return torch.zeros(1, dtype=reached.dtype).expand(*reached.shape[:-1], outputs)
        return forward(module, inputs.reshape(reached.shape[:-1] + inputs.shape[-1:]))

    module.forward = answer
    stack.callback(module.__dict__.pop, "forward")


@contextlib.contextmanager
def _no_attention() -> Iterator[None]:
    """Attention gives zeros: it is only reached by what was skipped, and `find_groups` has seen that nothing changes."""
    functional = nn.functional
    real = functional.scaled_dot_product_attention

    def zeros(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return query.new_zeros(1).expand(*query.shape[:-1], value.shape[-1])

    functional.scaled_dot_product_attention = zeros
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real


def batches(activations: Activations, size: int) -> Iterator[tuple[int, Tensor]]:
    """(first sample, hidden states) of each batch."""
    for start in range(0, activations.samples, size):
        yield start, activations.read(start, min(start + size, activations.samples))
