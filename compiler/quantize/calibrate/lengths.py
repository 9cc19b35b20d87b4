"""How long calibration samples are."""

from __future__ import annotations

from compiler.model import Model
from compiler.quantization import Calibration

# An encoder mostly reads short texts, each with its special tokens, whose activations are unlike the others'.
_PASSAGE_TOKENS = 64


def sample_tokens_of(model: Model, calibration: Calibration) -> int:
    """Tokens of a sample: what is asked for, or the model's context, or a passage of an encoder without a text, if shorter."""
    longest = model.geometry.context_length or calibration.sample_tokens
    reserved = 2 if model.config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
    passage = _PASSAGE_TOKENS if not model.is_decoder and calibration.text is None else calibration.sample_tokens
    return min(calibration.sample_tokens, longest - reserved, passage)
