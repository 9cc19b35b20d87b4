"""The embedding and the head of a network: where they are, how they are stored, and rounding them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compiler.model import Model
from compiler.quantize.grid import Grid, Scales, dequantize, fit_scales, round_to_codes
from compiler.quantize.network import Network, weight_of
from compiler.quantize.settings import Quantization

TABLE_GROUP = 32
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


def find_tables(network: Network, model: Model, settings: Quantization, symmetric: bool) -> Tables:
    """Where embedding and head are, and their grids."""
    names = {id(module): name for name, module in network.module.named_modules()}
    embedding = names.get(id(network.module.get_input_embeddings())) if model.geometry.vocabulary else None
    output = network.module.get_output_embeddings() if model.is_decoder else None
    head = names.get(id(output)) if output is not None else None
    if embedding is None:
        return Tables(None, None, None, None, False)
    table = network.module.get_submodule(embedding)
    tied = output is not None and output.weight is table.weight
    fits = weight_of(table).shape[1] % TABLE_GROUP == 0

    def grid(storage: str, automatic: str) -> Grid | None:
        storage = automatic if storage == "auto" else storage
        if storage == "kept" or not fits:
            return None
        return Grid(4, TABLE_GROUP, symmetric) if storage == "int4" else Grid(8, TABLE_GROUP, True)

    own_embedding = grid(settings.embedding, "int8" if tied or not model.is_decoder else "int4")
    own_head = grid(settings.head, "int8")
    if tied:
        own_head = own_embedding
    return Tables(embedding, head, own_embedding, own_head if head else None, tied)


def allocated_tables(tables: Tables, own: Mapping[str, Grid]) -> Tables:
    """The tables with the grids that an allocation has for them, by the names of their weights."""
    embedding = own.get(f"{tables.embedding}.weight", tables.embedding_grid)
    head = embedding if tables.tied else own.get(f"{tables.head}.weight", tables.head_grid)
    return replace(tables, embedding_grid=embedding, head_grid=head)


def front_inputs(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """What the network is called with for token ids (samples, positions)."""
    if not model.is_decoder and (model.config.get("type_vocab_size") or 0) > 1:
        return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
    return {"input_ids": ids}


def round_table(weight: Tensor, grid: Grid) -> tuple[Tensor, Scales]:
    """The nearest codes and their scales for a table (rows, columns), which is overwritten with what they stand for."""
    parts = []
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        rows = weight[start : start + _ROWS_AT_ONCE]
        scales = fit_scales(rows, grid)
        codes = round_to_codes(rows, scales, grid)
        parts.append((codes, scales))
        rows.copy_(dequantize(codes, scales))
    return join_rows(parts)


def join_rows(parts: list[tuple[Tensor, Scales]]) -> tuple[Tensor, Scales]:
    """Codes and scales of a matrix from those of its rows."""
    codes = torch.cat([codes for codes, _ in parts])
    scale = torch.cat([scales.scale for _, scales in parts])
    return codes, Scales(scale, torch.cat([scales.zero_point for _, scales in parts]))


@contextmanager
def replaced_weight(module: nn.Module, weight: Tensor) -> Iterator[None]:
    """A module's weight replaced for a while."""
    own, module.weight = module.weight, nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        module.weight = own
