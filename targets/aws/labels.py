"""Labels of a classifier: their names, and how handlers make scores of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
# Source of the handlers, which have `PROBLEM`.
SCORES = '''def scores(logits):
    """As the model was trained: numbers as they are, each label for itself, or all together."""
    if PROBLEM == "regression":
        return logits
    if PROBLEM == "multi_label_classification" or len(logits) == 1:
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()'''


def labels_of(config: Mapping[str, Any], outputs: int | str) -> list[str]:
    """The name of each output; its number where config.json tells none."""
    told = config.get("id2label")
    named = told if isinstance(told, dict) else {}
    count = outputs if isinstance(outputs, int) else len(named) or 2
    return [str(named.get(str(number), number)) for number in range(count)]


def problem_of(config: Mapping[str, Any]) -> str | None:
    """How a classifier was trained, one of three words; None where config.json tells none of them."""
    told = config.get("problem_type")
    return told if told in _PROBLEMS else None
