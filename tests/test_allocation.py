"""Bits under a budget: the allocation is within it, is what exhaustive search finds, and is refused when nothing fits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import click
import pytest
import tiny
from conftest import Run, assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.cli.quantize_options import ByteCount
from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.quantize.allocation import Choice, Sensitivity, allocate
from targets.gguf.target import CHOICES as GGUF_CHOICES

_CHOICES = (Choice(4, True, 4.5), Choice(4, False, 5.0), Choice(8, True, 8.5))


def _row(number: int, weights: int, measured: float) -> Sensitivity:
    kl = ((4, True, measured), (4, False, 0.8 * measured), (8, True, 0.004 * measured))
    return Sensitivity((f"layers.{number}.weight",), weights, measured, kl)


_rows = st.lists(st.tuples(st.integers(1, 50), st.floats(1e-6, 1.0)), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(_rows, st.floats(4.5, 9.0))
def test_an_allocation_spends_its_budget_and_misses_the_best_by_at_most_one_upgrade(
    shapes: list[tuple[int, float]], bits_per_weight: float
) -> None:
    rows = [_row(number, 32 * weights, measured) for number, (weights, measured) in enumerate(shapes)]
    budget = bits_per_weight * sum(row.weights for row in rows) + 1e-6
    chosen = allocate(rows, _CHOICES, budget)

    def bits(choices: tuple[Choice, ...]) -> float:
        return sum(row.weights * choice.bits_per_weight for row, choice in zip(rows, choices, strict=True))

    def kl(choices: tuple[Choice, ...]) -> float:
        table = [{(b, s): value for b, s, value in row.kl} for row in rows]
        return sum(known[choice.bits, choice.symmetric] for known, choice in zip(table, choices, strict=True))

    assert bits(tuple(chosen)) <= budget
    every = itertools.product(_CHOICES, repeat=len(rows))
    best = min(kl(choices) for choices in every if bits(choices) <= budget)
    # Lagrangian bound: greedy misses the best by no more than the gain of one upgrade that it could not pay for.
    gains = [0.0]
    for number, choice in enumerate(chosen):
        after = _CHOICES.index(choice) + 1
        if after < len(_CHOICES):
            upgraded = (*chosen[:number], _CHOICES[after], *chosen[number + 1 :])
            assert bits(upgraded) > budget
            gains.append(kl(tuple(chosen)) - kl(upgraded))
    assert kl(tuple(chosen)) <= best + max(gains) + 1e-9


@pytest.mark.parametrize(("text", "count"), [("90MB", 90_000_000), ("1.5GiB", 1_610_612_736), ("2048", 2048)])
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert ByteCount().convert(text, None, None) == count


@pytest.mark.parametrize("text", ["ninety", "", "-5MB", "0", "90 apples"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 90MB"):
        ByteCount().convert(text, None, None)


def test_a_sensitive_layer_gets_more_bits_than_others_of_its_size() -> None:
    rows = [_row(0, 1024, 0.001), _row(1, 1024, 0.1), _row(2, 1024, 0.001)]
    chosen = allocate(rows, _CHOICES, 4.5 * 2048 + 8.5 * 1024)
    assert [choice.bits for choice in chosen] == [4, 8, 4]


def test_a_budget_below_the_fewest_bits_is_refused_with_what_is_missing() -> None:
    with pytest.raises(UnusableInput, match="too small"):
        allocate([_row(0, 10**6, 0.1)], _CHOICES, 4.0 * 10**6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-r", "gguf:mixed-gptq-g32"), ("--target-bpw", "--max-bytes")),
        (("-r", "gguf:Q4_K_M", "--max-bytes", "90MB"), ("mixed-gptq-g32",)),
    ],
)
def test_budgets_that_mean_nothing_are_refused(
    words: tuple[str, ...], said: tuple[str, ...], smollm2: Model, edgec: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    tiny.save_decoder("llama", smollm2.folder, folder)
    assert_refused(edgec("build", folder, *words, "-o", tmp_path / "never"), 2, *said)
    assert not (tmp_path / "never").exists()


def test_a_mixed_package_is_within_its_bits_and_has_the_table_of_layers(
    smollm2: Model, edgec_here: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    tiny.save_decoder("llama", smollm2.folder, folder)
    calibration = ("--calibration-samples", "4", "--calibration-tokens", "64")
    recipes = ("-r", "gguf:mixed-gptq-g32", "-r", "onnx:mixed-gptq-g32")
    done = edgec_here("build", folder, *recipes, "--target-bpw", "6.5", *calibration, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    for package in json.loads(done.stdout)["packages"]:
        assert package["weights"]["effective_bits_per_weight"] <= 6.5
        table = json.loads((Path(package["folder"]) / "allocation.json").read_text())
        groups = table["groups"]
        assert all(group["measured_kl"] >= 0 for group in groups)
        assert any("q_proj" in name for group in groups for name in group["layers"])
        held = {(choice.bits, choice.symmetric) for choice in GGUF_CHOICES}
        assert {(group["bits"], group["symmetric"]) for group in groups} <= held
