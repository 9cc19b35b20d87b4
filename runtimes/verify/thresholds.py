"""How far a package of each scheme may be from the Reference before `verify` fails.

They are set above what good packages of these schemes show and far
below what a wrong graph, a swapped tensor or a lost mask causes. A recipe file can set its own.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

from compiler.recipe import Thresholds
from compiler.scheme import Scheme, find_scheme


def _limits(mean_kl: float, same_top1: float, cosine: float, greedy: float | None = None) -> Thresholds:
    """The relative error is held to what the cosine allows a vector of the same length: a wrong scale is wrong."""
    error = math.sqrt(2 - 2 * cosine)
    return Thresholds(mean_kl, None, same_top1, cosine, greedy, error)


THRESHOLDS: tuple[tuple[str, Thresholds], ...] = (
    ("fp32", _limits(1e-6, 0.995, 0.9999, 0.95)),
    ("F32", _limits(1e-4, 0.99, 0.9999, 0.9)),
    ("fp16", _limits(5e-4, 0.98, 0.999, 0.8)),
    ("F16", _limits(5e-4, 0.98, 0.999, 0.8)),
    ("bf16", _limits(5e-3, 0.95, 0.99)),
    ("BF16", _limits(5e-3, 0.95, 0.99)),
    ("int8", _limits(0.02, 0.85, 0.85)),
    ("w8a8", _limits(0.05, 0.75, 0.85)),
    ("Q8_0", _limits(0.02, 0.92, 0.99)),
    ("Q6_K", _limits(0.06, 0.82, 0.97)),
    ("Q5_K_M", _limits(0.15, 0.70, 0.95)),
    ("Q5_K_S", _limits(0.15, 0.70, 0.95)),
    ("Q5_1", _limits(0.25, 0.62, 0.95)),
    ("Q5_0", _limits(0.25, 0.62, 0.95)),
    ("Q4_K_M", _limits(0.35, 0.55, 0.90)),
    ("Q4_K_S", _limits(0.40, 0.52, 0.90)),
    ("Q4_1", _limits(0.80, 0.45, 0.85)),
    ("Q4_0", _limits(0.90, 0.40, 0.85)),
    ("Q3_K_L", _limits(0.60, 0.55, 0.80)),
    ("Q3_K_M", _limits(0.80, 0.50, 0.80)),
    ("Q3_K_S", _limits(1.20, 0.45, 0.80)),
    ("Q2_K", _limits(3.00, 0.20, 0.60)),
    ("Q2_K_S", _limits(3.00, 0.20, 0.60)),
)


def thresholds_for(scheme: str, own: Thresholds) -> Thresholds:
    """The scheme's limits with the recipe's own in their place where it has any. KeyError for a scheme without limits."""
    found = find_scheme(scheme)
    if found is not None and found.method:
        return replace(_of_codes(found), **_given(own))
    return replace(dict(THRESHOLDS)[scheme], **_given(own))


def _of_codes(scheme: Scheme) -> Thresholds:
    """Limits by bits and group; GPTQ must be well below rounding. A mixture has at least 4 bits everywhere."""
    if scheme.method == "lut":
        # Without a scale for each group of columns, palettes of few values are far off unless calibrated.
        return _limits(0.1, 0.7, 0.95) if scheme.code_bits == 6 else _limits(1.5, 0.3, 0.6)
    kl, same, cosine = {
        8: (0.03, 0.85, 0.97),
        4: (1.0, 0.38, 0.85),
        3: (3.0, 0.1, 0.6),
        2: (12.0, 0.0, 0.0),
    }[scheme.code_bits or 4]
    coarse = 1.0 if scheme.block == 32 else 1.8
    if scheme.method == "gptq" and scheme.code_bits < 8:
        return _limits(0.4 * kl * coarse, min(1.0, same * 1.2), cosine)
    return _limits(kl * coarse, same / coarse, cosine)


def _given(own: Thresholds) -> dict[str, float]:
    return {field.name: value for field in fields(own) if (value := getattr(own, field.name)) is not None}
