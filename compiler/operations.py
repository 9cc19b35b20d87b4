"""How much a model has to compute, told from its shapes."""

from __future__ import annotations

from compiler.model import Model
from compiler.size import matrices_of


def operations(model: Model, tokens: int) -> int:
    """Additions and multiplications of so many tokens at once; of a decoder's head those of the last token alone."""
    matrices = matrices_of(model)
    body = sum(each.elements for each in matrices if each.place in ("block", "elsewhere"))
    # A head that is the embedding is there once, as that.
    place = "head" if any(each.place == "head" for each in matrices) else "embedding"
    head = sum(each.elements for each in matrices if each.place == place) if model.is_decoder else 0
    scores = 4 * tokens * tokens * model.geometry.hidden_size * model.geometry.layers
    return 2 * body * tokens + 2 * head + scores
