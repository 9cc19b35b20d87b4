"""The embedding and the head of a network: where they are, how they are stored, and rounding them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compiler.model import Model
from compiler.quantization import TABLE_GROUP, Quantization, embedding_bits, head_bits
from compiler.quantize.blocks.network import Network, weight_of
from compiler.quantize.solve.grid import Grid
from compiler.quantize.solve.matrix import QuantizationParameters, restore_rows, round_matrix

# Rows that share a palette in a table: it has many, and 8 bits are 256 values.
TABLE_PALETTE_ROWS = 64
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Tables:
    """The embedding and the head of a network, by name in it; None where there is none or it is kept.

    Attributes:
        embedding, head: names of the modules; equal weights when `tied`.
        embedding_grid, head_grid: their grids.
        tied: the head is the embedding.
    """

    embedding: str | None
    head: str | None
    embedding_grid: Grid | None
    head_grid: Grid | None
    tied: bool


def find_tables(
    network: Network, model: Model, settings: Quantization, layers: Grid, *, by_row: bool = False
) -> Tables:
    """Where embedding and head are, and their grids, which go with the grid of the layers.

    `by_row` gives those of 8 bits a scale for each row.
    """
    names = {id(module): name for name, module in network.module.named_modules()}
    embedding = names.get(id(network.module.get_input_embeddings())) if model.geometry.vocabulary else None
    output = network.module.get_output_embeddings() if model.is_decoder else None
    head = names.get(id(output)) if output is not None else None
    if embedding is None:
        return Tables(None, None, None, None, False)
    table = network.module.get_submodule(embedding)
    tied = output is not None and output.weight is table.weight
    fits = weight_of(table).shape[1] % TABLE_GROUP == 0

    def grid(bits: int | None) -> Grid | None:
        if bits is None:
            return None
        if layers.rows_per_palette is not None:
            return Grid(bits, 0, False, layers.rows_per_palette and TABLE_PALETTE_ROWS)
        if (by_row and bits == 8) or (layers.group_size == 0 and layers.bits == 8):
            return Grid(8, 0, True, positive_scales=layers.positive_scales)
        symmetric = layers.symmetric or bits == 8
        return Grid(bits, TABLE_GROUP, symmetric, positive_scales=layers.positive_scales) if fits else None

    own_embedding = grid(embedding_bits(settings, tied=tied, decoder=model.is_decoder))
    own_head = grid(head_bits(settings))
    if tied:
        own_head = own_embedding
    return Tables(embedding, head, own_embedding, own_head if head else None, tied)


def allocated_tables(tables: Tables, own: Mapping[str, Grid]) -> Tables:
    """The tables with the grids that an allocation has for them, by the names of their weights."""
    embedding = own.get(f"{tables.embedding}.weight", tables.embedding_grid)
    head = embedding if tables.tied else own.get(f"{tables.head}.weight", tables.head_grid)
    return replace(tables, embedding_grid=embedding, head_grid=head)


def front_inputs(model: Model, samples: Tensor) -> dict[str, Tensor]:
    """What the network is called with for token ids (samples, positions), or pictures."""
    if model.takes == "image":
        return {"pixel_values": samples}
    if not model.is_decoder and (model.config.get("type_vocab_size") or 0) > 1:
        return {"input_ids": samples, "token_type_ids": torch.zeros_like(samples)}
    return {"input_ids": samples}


def round_table(weight: Tensor, grid: Grid) -> tuple[Tensor, QuantizationParameters]:
    """The nearest codes of a table (rows, columns) and what they mean; it is overwritten with what they stand for."""
    codes, parameters = round_matrix(weight, grid)
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE]
        rows.copy_(restore_rows(codes, parameters, start, start + len(rows)))
    return codes, parameters


@contextmanager
def replaced_weight(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """A module's weight replaced for a while."""
    own, module.weight = module.weight, nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        module.weight = own
