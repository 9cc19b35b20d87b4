"""The figures agree with independent implementations; validity and comparisons follow from samples as stated."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measurements import found, measurement

from benchmarks.agent import environment
from benchmarks.compare import compare, compare_recipes
from benchmarks.measurement import Measurement, read_measurements, write_measurements
from benchmarks.report.charts import pareto_front
from benchmarks.statistics import ratio_interval
from benchmarks.validity import Disturbance, Validity, judge
from compiler.errors import CheckFailed, UnusableInput
from runtimes.kinds import encoding, generation
from runtimes.kinds.kind import Figures, percentile, percentile_ms
from runtimes.verify.metrics import (
    Step,
    cosines,
    greedy_agreement,
    measure_logits,
    perplexity,
    relative_error,
    row_cosines,
    spread_error,
)
from runtimes.verify.verification import Verification
from runtimes.verify.verify import check_numbers, quality_of

_QUIET = Disturbance(0.0, 0.0, 0, None)


def test_kl_top1_and_perplexity_agree_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(70, 101, generator=generator) * 3
    observed = reference + 0.3 * torch.randn(70, 101, generator=generator)
    following = torch.randint(0, 101, (70,), generator=generator)
    measured = measure_logits(reference.numpy(), observed.numpy(), following.numpy())
    p, q = reference.double().log_softmax(-1), observed.double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(measured.kl, kl.numpy(), rtol=1e-10, atol=1e-14)
    assert measured.same.mean() == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    loss = torch.nn.functional.cross_entropy(observed.double(), following)
    assert perplexity(measured.loss) == pytest.approx(math.exp(loss.item()))


def test_a_container_with_a_padded_vocabulary_is_cut() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    padded = np.pad(logits, ((0, 0), (0, 4)), constant_values=50)
    assert measure_logits(logits, padded, np.zeros(3, np.int64)).kl.max() == 0


def test_cosines_agree_with_torch() -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    expected = torch.nn.functional.cosine_similarity(torch.tensor(a).double(), torch.tensor(b).double(), dim=-1)
    np.testing.assert_allclose(cosines(a, b), expected.numpy(), rtol=1e-12)


def test_greedy_agreement_ends_at_the_first_difference_and_a_tie_is_none() -> None:
    steps = [Step(token, 9, 0.5) for token in (1, 2, 3, 4)]
    assert greedy_agreement(steps, [1, 2, 3, 4]) == (4, 4)
    assert greedy_agreement(steps, [1, 2, 9, 4]) == (2, 4)
    tie = [*steps[:2], Step(3, 9, 1e-4), steps[3]]
    assert greedy_agreement(tie, [1, 2, 9, 5]) == (2, 2)
    assert greedy_agreement(tie, [1, 2, 8, 4]) == (2, 4)


@pytest.mark.parametrize("value", [0.2, float("nan"), float("inf")])
def test_a_figure_beyond_its_limit_or_not_a_number_fails(value: float) -> None:
    assert check_numbers({"mean_kl": value}, {"max_mean_kl": 0.1}, generation.KIND.limited)
    assert check_numbers({"min_cosine": -value}, {"min_cosine": 0.1}, encoding.KIND.limited)
    assert check_numbers({}, {"min_cosine": 0.1}, encoding.KIND.limited), "a figure that is missing"


def test_figures_within_limits_pass() -> None:
    limits = {"max_mean_kl": 0.1, "min_same_top1": 0.9}
    assert check_numbers({"mean_kl": 0.1, "same_top1": 0.9}, limits, generation.KIND.limited) == []


def test_outputs_of_the_right_direction_and_the_wrong_size_fail() -> None:
    reference = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    tenth = (reference / 10).astype(np.float32)
    pairs = [(reference[:2], tenth[:2]), (reference[2:], tenth[2:])]
    assert np.concatenate(row_cosines(pairs)).tolist() == pytest.approx([1] * 4)
    assert relative_error(pairs) == pytest.approx(0.9)
    good: Figures = {"relative_error": 0.0, "spread_error": 0.0, "min_cosine": 1.0}
    assert quality_of({**good, "relative_error": 0.9}, encoding.KIND) == "unusable"
    assert quality_of({**good, "spread_error": 0.9}, encoding.KIND) == "unusable"
    assert quality_of(good, encoding.KIND) == "near-lossless"


def test_outputs_that_tell_no_text_from_another_fail_however_near_they_are() -> None:
    """One channel dominates, as in RoBERTa: the cosine is near 1 for any text."""
    random = np.random.default_rng(0)
    reference = random.normal(size=(64, 32)).astype(np.float32)
    reference[:, 0] = 100
    observed = random.normal(size=(64, 32)).astype(np.float32)
    observed[:, 0] = 100
    pairs = [(reference[:40], observed[:40]), (reference[40:], observed[40:])]
    assert np.concatenate(row_cosines(pairs)).min() > 0.98 and relative_error(pairs) < 0.1
    assert 1.2 < spread_error(pairs) < 1.6
    assert spread_error([(reference, reference + np.float32(0.01))]) < 0.02
    constant = np.ones((4, 3), np.float32)
    assert spread_error([(constant, constant * np.float32(1.0001))]) < 0.02, "outputs that never differ"


def test_a_single_label_is_compared_over_all_inputs() -> None:
    """A row of one value has no direction: a score near zero that changes its sign is no difference."""
    reference = [np.asarray([[8.0]], np.float32), np.asarray([[0.001]], np.float32)]
    near = list(zip(reference, [reference[0], -reference[1]], strict=True))
    assert row_cosines(near)[0].tolist() == pytest.approx([1])
    assert relative_error(near) < 1e-3
    assert relative_error([(each, (each / 800).astype(np.float32)) for each in reference]) > 0.99


def test_percentiles_are_those_of_numpy() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.5


def test_the_interval_of_a_ratio_holds_the_truth_and_narrows_with_more_rounds() -> None:
    generator = np.random.default_rng(1)

    def rounds(count: int, level: float) -> list[list[float]]:
        return [list(level * generator.lognormal(0, 0.05, 20)) for _ in range(count)]

    few = ratio_interval(rounds(4, 1.0), rounds(4, 1.3))
    many = ratio_interval(rounds(40, 1.0), rounds(40, 1.3))
    assert few.low < 1.3 < few.high
    assert many.high - many.low < few.high - few.low


def test_a_quiet_steady_run_is_valid() -> None:
    assert judge([[1.0, 1.01], [1.0, 1.0], [1.01, 1.0]], _QUIET).word == "valid"


@pytest.mark.parametrize(
    ("disturbance", "word", "reason"),
    [
        (Disturbance(0.10, 0.0, 0, None), "suspect", "other programs"),
        (Disturbance(0.50, 0.0, 0, None), "invalid", "other programs"),
        (Disturbance(0.0, 0.05, 0, None), "suspect", "hypervisor"),
        (Disturbance(0.0, 0.0, 7, None), "suspect", "swapped"),
        (Disturbance(0.0, 0.0, 0, 3), "suspect", "throttled"),
    ],
)
def test_disturbances_are_named(disturbance: Disturbance, word: str, reason: str) -> None:
    validity = judge([[1.0], [1.0], [1.0]], disturbance)
    assert validity.word == word
    assert reason in validity.reasons[0]


def test_drift_and_spread_are_named() -> None:
    validity = judge([[1.0], [1.1], [1.3]], _QUIET)
    assert validity.word == "invalid"
    assert any("last round" in reason for reason in validity.reasons)


def _measurement(scale: float = 1.0, **changes: object) -> Measurement:
    generator = np.random.default_rng(0)
    samples = {"latency_s": tuple(tuple(scale * 0.01 * generator.lognormal(0, 0.02, 20)) for _ in range(5))}
    base = measurement(samples, {"package_bytes": 100, "latency_ms_p50": 10.0 * scale}, {"max_abs_difference": 0.1})
    return replace(base, **changes)  # type: ignore[arg-type]


def _found(distance: float, passed: bool = True, text: str = "edgec passages") -> Verification:
    return replace(found({"max_abs_difference": distance}), passed=passed, text=text)


def test_a_slower_challenger_is_a_regression_beyond_the_effect_only() -> None:
    latency = {c.metric: c for c in compare([_measurement()], [_measurement(1.2)], 0.05)}["latency"]
    assert latency.regression
    assert latency.ratio.value == pytest.approx(1.2, rel=1e-6)
    assert not any(c.regression for c in compare([_measurement()], [_measurement(1.2)], 0.30))
    assert not any(c.regression for c in compare([_measurement()], [_measurement()], 0.0))


def test_worse_quality_and_larger_packages_are_regressions() -> None:
    worse = _measurement(quality=_found(0.2), summary={"package_bytes": 150})
    found = {c.metric for c in compare([_measurement()], [worse], 0.05) if c.regression}
    assert found == {"max_abs_difference", "package_bytes"}


def test_runs_that_share_nothing_or_are_invalid_are_refused() -> None:
    with pytest.raises(UnusableInput, match="in common"):
        compare([_measurement()], [_measurement(recipe="onnx:fp32")], 0.05)
    invalid = _measurement(verdict=Validity("invalid", ("swap",)))
    with pytest.raises(CheckFailed, match=r"cannot be believed: swap.*--metrics quality,size"):
        compare([_measurement()], [invalid], 0.05)
    assert {c.metric for c in compare([_measurement()], [invalid], 0.05, metrics=("quality", "size"))} == {
        "package_bytes",
        "max_abs_difference",
    }


def test_names_that_compare_does_not_know_are_refused() -> None:
    with pytest.raises(UnusableInput, match="'speeed' is none of the metrics"):
        compare([_measurement()], [_measurement()], 0.05, metrics=("speeed",))
    with pytest.raises(UnusableInput, match="'nonsense' is none of the checks"):
        compare([_measurement()], [_measurement()], 0.05, allow=["nonsense"])


def test_quality_that_one_side_lacks_or_that_got_a_worse_word_fails() -> None:
    unverified = replace(_measurement(), quality=None)
    for pair, side in (([unverified, _measurement()], "the baseline"), ([_measurement(), unverified], "this run")):
        with pytest.raises(CheckFailed, match=f"was not verified in {side}"):
            compare(pair[:1], pair[1:], 0.05)
        assert compare(pair[:1], pair[1:], 0.05, allow=["quality"])
        assert compare(pair[:1], pair[1:], 0.05, metrics=["speed"])
    worse = _measurement(quality=replace(_found(0.1), quality="degraded"))
    with pytest.raises(CheckFailed, match="is degraded, and the baseline was near-lossless"):
        compare([_measurement()], [worse], 0.05)


def test_encoders_are_compared_by_what_their_cosines_lack_to_one() -> None:
    def near(cosine: float) -> Measurement:
        return _measurement(quality=found({"min_cosine": cosine, "mean_cosine": 0.999, "spread_error": 0.1}))

    compared = {c.metric: c for c in compare([near(0.99)], [near(0.97)], 0.05)}
    assert compared["min_cosine"].ratio.value == pytest.approx(3) and compared["min_cosine"].regression
    assert not compared["mean_cosine"].regression and not compared["spread_error"].regression


def test_a_metric_that_only_the_baseline_has_fails() -> None:
    before = _measurement()
    without = replace(before, summary={**before.summary, "package_bytes": None})
    with pytest.raises(CheckFailed, match="has package_bytes, and what is held to it has none"):
        compare([before], [without], 0.05)
    assert before.quality is not None
    unknown = replace(before, quality=replace(before.quality, figures={}))
    with pytest.raises(CheckFailed, match="what is held to it has none"):
        compare([before], [unknown], 0.05, metrics=["quality"])
    assert compare([before], [without], 0.05, allow=["missing"])


def test_a_comparison_that_leaves_something_out_fails() -> None:
    both = [_measurement(), _measurement(recipe="onnx:fp32")]
    with pytest.raises(CheckFailed, match=r"1 measurements of the baseline have no counterpart.*onnx:fp32"):
        compare(both, both[:1], 0.05)
    assert compare(both, both[:1], 0.05, allow=["missing"])
    wrong = [_measurement(quality=_found(0.1, passed=False))]
    with pytest.raises(CheckFailed, match="failed `edgec verify`"):
        compare(both[:1], wrong, 0.05)
    assert compare(both[:1], wrong, 0.05, allow=["quality"])
    with pytest.raises(UnusableInput, match="nothing beside onnx:int8"):
        compare_recipes(both[:1], "onnx:int8", 0.05)


@pytest.mark.parametrize("threads", [1, 3, 11])
def test_bandwidth_is_measured_with_any_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_BANDWIDTH_BYTES", 1_000_000)
    assert environment.measure_read_bandwidth(threads) > 1e6


def test_packages_of_other_bits_or_schemes_are_not_comparable_unless_told_so() -> None:
    def of(recipe: str, bits: float, text: str = "passages") -> Measurement:
        summary = {"package_bytes": 100, "effective_bits_per_weight": bits}
        return _measurement(recipe=recipe, summary=summary, quality=_found(0.1, text=text))

    run = [of("gguf:Q4_0", 4.5), of("gguf:Q8_0", 8.5), of("onnx:Q4_0", 5.0), of("onnx:Q4_0", 4.55)]
    with pytest.raises(UnusableInput, match=r"Q8_0 \(8.50 .*Q4_0 \(4.50 .*differ in scheme.*--across-schemes"):
        compare_recipes([run[0], run[1]], "gguf:Q4_0", 0.05)
    with pytest.raises(UnusableInput, match="differ in bits"):
        compare_recipes([run[0], run[2]], "gguf:Q4_0", 0.05)
    with pytest.raises(UnusableInput, match="differ in bits"):
        compare([run[2]], [run[3]], 0.05)
    near = compare_recipes([run[0], run[3]], "gguf:Q4_0", 0.05)
    assert {(each.champion_bits, each.challenger_bits) for each in near} == {(4.5, 4.55)}
    told = compare_recipes([run[0], run[1]], "gguf:Q4_0", 0.05, across_schemes=True)
    assert {each.metric for each in told} == {"latency", "package_bytes", "max_abs_difference"}
    with pytest.raises(UnusableInput, match="same --text"):
        compare([run[0]], [of("gguf:Q4_0", 4.5, "other.txt")], 0.05, across_schemes=True)


def test_results_are_read_back_and_other_schemas_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    both = [_measurement(), replace(_measurement(2.0), package="q")]
    write_measurements(path, both)
    assert read_measurements(path) == both
    path.write_text(path.read_text().replace('"schema_version": 3', '"schema_version": 7'))
    with pytest.raises(UnusableInput, match="7"):
        read_measurements(path)


def test_joined_files_and_times_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_measurements(path, [_measurement(), _measurement(2.0)])
    with pytest.raises(UnusableInput, match="joined"):
        read_measurements(path)
    wrong: list[tuple[tuple[float, ...], ...]] = [((-0.001,),), ((math.nan,),), ()]
    for rounds in wrong:
        write_measurements(path, [replace(_measurement(), samples={"latency_s": rounds})])
        with pytest.raises(UnusableInput, match="are no times"):
            read_measurements(path)


def test_a_percentile_needs_samples_beyond_it_and_threads_need_cores() -> None:
    assert percentile_ms([0.001] * 99, 0.99) is None and percentile_ms([0.001] * 100, 0.99) == 1.0
    assert percentile_ms([0.001] * 9, 0.9) is None and percentile_ms([0.001] * 10, 0.9) == 1.0
    quiet, rounds = Disturbance(0.0, 0.0, 0, None), [[0.001] * 5] * 3
    assert judge(rounds, quiet, 2, 2.0).word == "valid"
    found = judge(rounds, quiet, 2, 1.0)
    assert found.word == "suspect" and "2 threads ran on the 1 cores" in found.reasons[0]


def test_figures_of_two_machines_are_not_compared(tmp_path: Path) -> None:
    other = replace(_measurement(), environment=replace(_measurement().environment, cpu="Cortex-A76"))
    with pytest.raises(CheckFailed, match="Cortex-A76"):
        compare([_measurement()], [other], 0.05)
    assert compare([_measurement()], [other], 0.05, allow=["machine"])
    assert compare([_measurement()], [other], 0.05, metrics=["quality", "size"])


def test_figures_of_two_versions_of_a_runtime_are_not_compared() -> None:
    environment_before = _measurement().environment
    newer = replace(_measurement(), environment=replace(environment_before, tools={"x": "2"}))
    with pytest.raises(CheckFailed, match=r"ran on x 2, and the baseline on 1"):
        compare([_measurement()], [newer], 0.05)
    assert compare([_measurement()], [newer], 0.05, allow=["runtime"])


def test_the_pareto_front_has_no_beaten_point() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.5, 2.5), (1.0, 4.0)]
    assert pareto_front(points) == [1, 2, 0]


def test_a_word_that_is_no_quality_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_measurements(path, [measurement({"latency_s": ((0.01,),)}, {}, {})])
    path.write_text(path.read_text().replace('"near-lossless"', '"excellent"'))
    with pytest.raises(UnusableInput, match="excellent"):
        read_measurements(path)
