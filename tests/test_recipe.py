"""A recipe is written target:scheme[@variant][+option]; what cannot be parsed is refused with the nearest that can."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Run
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import UnusableInput
from compiler.quality import QUALITIES, UNUSABLE
from compiler.quantization import Calibration, Quantization
from compiler.quantize.options import QuantizationOptions
from compiler.recipe import Recipe, Shapes, folder_names, parse_recipe, recipe_from_full
from compiler.recipe_file import read_recipe_file
from compiler.scheme import SCHEMES, find_scheme
from runtimes.kinds import find_kind
from runtimes.verify.verify import own_limits
from targets.registry import TARGET_NAMES

_words = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
_recipes = st.builds(
    Recipe,
    target=st.sampled_from(TARGET_NAMES),
    scheme=st.sampled_from(SCHEMES),
    variant=st.none() | st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True),
    options=st.lists(_words, unique=True, max_size=3).map(tuple),
)
_full_recipes = st.builds(
    Recipe,
    target=st.sampled_from(TARGET_NAMES),
    scheme=st.sampled_from(SCHEMES),
    variant=st.none() | _words,
    options=st.lists(_words, unique=True, max_size=3).map(tuple),
    shapes=st.builds(Shapes, context_length=st.none() | st.integers(1, 10**6), sequence_length=st.integers(1, 4096)),
    task=st.none() | st.just("fill-mask"),
    thresholds=st.dictionaries(
        st.from_regex(r"(max|min)_[a-z0-9_]{1,8}", fullmatch=True), st.floats(0, 10), max_size=2
    ).map(lambda limits: tuple(sorted(limits.items()))),
)


@given(_recipes)
def test_what_is_printed_is_parsed_back(recipe: Recipe) -> None:
    assert parse_recipe(str(recipe), TARGET_NAMES) == recipe


@given(_full_recipes)
def test_the_full_form_is_read_back(recipe: Recipe) -> None:
    assert recipe_from_full(recipe.full()) == recipe


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_in_a_sentence(text: str) -> None:
    try:
        assert str(parse_recipe(text, TARGET_NAMES)).split(":")[0] in TARGET_NAMES
    except UnusableInput as error:
        assert str(error).endswith(".") or "Did you mean" in str(error)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("gguf:Q4_KM", "gguf:Q4_K_M"),
        ("onxx:int8", "onnx:int8"),
        ("gguf:q8_0", "gguf:Q8_0"),
        ("onnx:int4rtn-g32", "onnx:int4-rtn-g32"),
    ],
)
def test_an_unknown_recipe_gets_the_nearest_known(text: str, nearest: str) -> None:
    with pytest.raises(UnusableInput, match=nearest):
        parse_recipe(text, TARGET_NAMES)


def test_short_names_of_llama_quantize_are_known() -> None:
    assert parse_recipe("gguf:Q4_K", TARGET_NAMES).scheme.name == "Q4_K_M"


def test_every_kind_has_the_words_for_quality_in_order_and_each_asks_less_than_the_one_before() -> None:
    for kind in (find_kind("generation"), find_kind("encoding")):
        assert [grade.word for grade in kind.grades] == [word for word in QUALITIES if word != UNUSABLE]
        for better, worse in pairwise(kind.grades):
            assert set(better.limits) == set(worse.limits) <= set(kind.limited)
            for name, limit in better.limits.items():
                assert limit < worse.limits[name] if name.startswith("max_") else limit > worse.limits[name]


def test_a_recipe_may_limit_what_its_kind_has_and_nothing_else() -> None:
    own = replace(parse_recipe("gguf:Q8_0", TARGET_NAMES), thresholds=(("max_mean_kl", 0.5),))
    assert own_limits(find_kind("generation"), own)["max_mean_kl"] == 0.5
    with pytest.raises(UnusableInput, match=r"max_mean_kl.*no such figure of encoders.*min_cosine"):
        own_limits(find_kind("encoding"), own)


def test_a_recipe_file_sets_shapes_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text(
        '[[recipe]]\nrecipe = "gguf:Q8_0"\ncontext_length = 512\n[recipe.thresholds]\nmax_mean_kl = 0.5\n'
        '[[recipe]]\nrecipe = "tflite:fp32"\nsequence_length = 64\n'
    )
    first, second = read_recipe_file(path, TARGET_NAMES)
    assert (first.scheme, first.shapes.context_length) == (find_scheme("Q8_0"), 512)
    assert dict(first.thresholds) == {"max_mean_kl": 0.5}
    assert second.shapes.sequence_length == 64


def test_a_recipe_file_says_all_that_the_options_can(tmp_path: Path, edgec: Run) -> None:
    (tmp_path / "text.txt").write_text("a text to calibrate on")
    path = tmp_path / "recipes.toml"
    path.write_text(
        '[[recipe]]\nrecipe = "gguf:int4-gptq-g32"\n[recipe.quantization]\ncalibration = "text.txt"\n'
        "calibration_samples = 8\ncalibration_tokens = 64\nseed = 1\nhead = 'int4'\nembedding = 'kept'\n"
        "smaller_groups = true\nactivation_order = false\ndamping = 0.02\nfeedback = 0\nrefinements = 1\n"
    )
    (recipe,) = read_recipe_file(path, TARGET_NAMES)
    settings = recipe.quantization
    calibration = settings.calibration
    assert (calibration.source, calibration.samples, calibration.sample_tokens, calibration.seed) == (
        "text.txt",
        8,
        64,
        1,
    )
    assert (settings.head, settings.embedding, settings.smaller_groups) == ("int4", "kept", True)
    assert (settings.activation_order, settings.damping, settings.feedback, settings.refinements) == (False, 0.02, 0, 1)
    assert recipe_from_full(recipe.full()) == recipe
    listed = edgec("build", "--help").stdout
    for field in fields(QuantizationOptions):
        assert f"--{field.name.replace('_', '-')}" in listed, "what a file can say an option can"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('[[recipe]]\nrecipe = "gguf:Q8_0"\nsequnce_length = 1\n', "sequnce_length"),
        ("[[recipe]]\nscheme = 1\n", "scheme"),
        ('[[recipe]]\nrecipe = "gguf:Q8_0"\n[recipe.thresholds]\nmean_kl = 1\n', "mean_kl"),
        ('[[recipe]]\nrecipe = "gguf:int4-gptq-g32"\n[recipe.quantization]\ndamp = 1\n', "damp"),
        ('[[recipe]]\nrecipe = "gguf:int4-gptq-g32"\n[recipe.quantization]\ndamping = "low"\n', "quantization.damping"),
        ('[[recipe]]\nrecipe = "gguf:int4-gptq-g32"\n[recipe.quantization]\ndamping = 2.0\n', "damping"),
        ('[[recipe]]\nrecipe = "gguf:int4-gptq-g32"\n[recipe.quantization]\ntarget_bpw = 5\n', "mixed-gptq-g32"),
        ('[[recipe]]\nrecipe = "gguf:int4-gptq-g32"\n[recipe.quantization]\ncalibration = "none.txt"\n', "none.txt"),
        ("not toml", "line 1, column 5"),
        ("a = [", "end of document"),
        ("a = " + "[" * 100_000, "nested too deep"),
        ("", "no [[recipe]] table"),
        ("recipe = 5\n", "no [[recipe]] table"),
        ('recipe = ["a"]\n', "[[recipe]] tables"),
        ('[[recipe]]\nrecipe = "gguf:Q8_0"\nthresholds = 3\n', "thresholds"),
        ("[[recipe]]\nrecipe = 5\n", "not a string"),
        ('[[recipe]]\nrecipe = "gguf:Q8_0"\ntask = 1\n', "not a string"),
        ('[[recipe]]\nrecipe = "tflite:fp32"\nsequence_length = "128"\n', "not a whole number"),
        ('[[recipe]]\nrecipe = "tflite:fp32"\nbatch = 0\n', "not a whole number"),
        ('[[recipe]]\nrecipe = "gguf:Q8_0"\n[recipe.thresholds]\nmax_mean_kl = "low"\n', "not a number"),
    ],
)
def test_a_recipe_file_with_an_unknown_key_or_another_kind_of_value_is_refused(
    tmp_path: Path, content: str, word: str
) -> None:
    path = tmp_path / "recipes.toml"
    path.write_text(content)
    with pytest.raises(UnusableInput) as caught:
        read_recipe_file(path, TARGET_NAMES)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "used"),
    [("coreml:w8a8", True), ("onnx:int4-gptq-g32", True), ("coreml:int8", False), ("gguf:Q4_0", False)],
)
def test_a_calibration_is_kept_where_something_is_measured_on_it(text: str, used: bool) -> None:
    recipe = parse_recipe(text, TARGET_NAMES)
    calibrated = replace(recipe, quantization=Quantization(Calibration(text="0" * 64, source="text.txt")))
    assert calibrated.uses_quantization is used
    assert (recipe_from_full(calibrated.full()).quantization.calibration.source == "text.txt") is used


def test_recipes_that_differ_in_shapes_have_these_in_their_names() -> None:
    plain = parse_recipe("tflite:fp32", TARGET_NAMES)
    short = replace(plain, shapes=Shapes(sequence_length=32))
    other = parse_recipe("onnx:fp32", TARGET_NAMES)
    assert folder_names([plain, other]) == ["tflite-fp32", "onnx-fp32"]
    assert folder_names([plain, short, other]) == ["tflite-fp32-sequence128", "tflite-fp32-sequence32", "onnx-fp32"]
    decoder = parse_recipe("gguf:Q8_0", TARGET_NAMES)
    long = replace(decoder, shapes=Shapes(context_length=4096))
    assert folder_names([decoder, long]) == ["gguf-Q8_0", "gguf-Q8_0-context4096"]
    with pytest.raises(UnusableInput, match="Two recipes would make the package onnx-fp32"):
        folder_names([other, plain, other])
