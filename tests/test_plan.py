"""Plans and profiles: what suits a device, told before anything is built, and the figures that it follows from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest
import tiny
import torch
import transformers
from conftest import Run, assert_refused
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.agent.rates import PRODUCT
from benchmarks.history import Seen, history_file, read_history, settings_of
from benchmarks.plan import Option, Plan, Wishes, _front, expected_quality
from benchmarks.plan import plan as make_plan
from benchmarks.prediction import COSTS, Range
from compiler.errors import UnusableInput
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.operations import operations
from compiler.recipe import parse_recipe
from runtimes.devices.profile import (
    FIGURES,
    KINDS,
    Figure,
    find_profile,
    own_folder,
    profile_of_machine,
    read_profile_file,
    read_profiles,
)
from targets.registry import TARGET_NAMES, load_target, schemes_of


@pytest.fixture(scope="module")
def model(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(str(tiny.save_decoder("llama", minilm_folder, tmp_path_factory.mktemp("plan") / "tiny-llama")))


def _planned(model: Model, device: str, seen: list[Seen] | None = None, **wishes: object) -> Plan:
    asked = Wishes(**{"context": 256, **wishes})  # type: ignore[arg-type]
    return make_plan(model, "d" * 64, find_profile(device), asked, load_target, seen or [])


def _option(plan: Plan, recipe: str) -> Option:
    return next(each for each in plan.options if each.recipe == recipe)


def test_every_profile_says_how_its_figures_are_known() -> None:
    profiles = read_profiles()
    assert {"pi-zero-2w", "pi-4-4gb", "pi-5-8gb", "jetson-orin-nano-8gb", "iphone-15-pro", "pixel-8", "mac-m4"} <= set(
        profiles
    )
    for profile in profiles.values():
        assert set(profile.targets) <= {*TARGET_NAMES, "neuron"}
        for name in FIGURES:
            figure = getattr(profile, name)
            assert figure is None or (figure.kind in KINDS and len(figure.source) > 5)
    pi = profiles["pi-5-8gb"]
    assert pi.memory is not None and pi.memory.amount == 8e9
    assert pi.read_bandwidth is not None and pi.bandwidth_peak is not None
    assert pi.read_bandwidth.amount < pi.bandwidth_peak.amount
    assert pi.bandwidth is None  # nobody published a plain read
    # Google tells no bandwidth of its chip, and so none is told here.
    assert profiles["pixel-8"].read_bandwidth is None


_DEVICE = '[[device]]\nname = "my-board"\ntitle = "Mine"\nmachine = "aarch64"\ntargets = ["gguf"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            _DEVICE + 'memory = { value = 4, unit = "GB/s", kind = "measured", source = "me" }',
            "memory has the unit 'GB/s'",
        ),
        (
            _DEVICE + 'bandwidth = { value = 4, unit = "GB", kind = "measured", source = "me" }',
            "bandwidth has the unit 'GB'",
        ),
        (_DEVICE + 'memory = { value = -4, unit = "GB", kind = "measured", source = "me" }', "memory is -4"),
        (_DEVICE + 'memory = { value = 4, unit = "GB", kind = "guessed", source = "me" }', "says not how it is known"),
        (_DEVICE + 'memory = { value = 4, unit = "GB", kind = "measured", source = "" }', "says not how it is known"),
        (_DEVICE + "memory = 4", "memory needs a value, a unit, a kind and a source"),
        (_DEVICE + 'bandwith = "x"', "unknown key 'bandwith'. Did you mean bandwidth"),
        (_DEVICE + "cores = 0", "has 0 cores"),
        (_DEVICE.replace("my-board", "My Board"), "a device of the name 'My Board'"),
        (_DEVICE.replace('targets = ["gguf"]\n', ""), "lacks targets"),
        ("[[device]\n", "not TOML in UTF-8"),
        ("[device]\n", "is no list of devices"),
    ],
)
def test_a_profile_that_is_wrong_is_told(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UnusableInput) as caught:
        read_profile_file(file)
    assert words in str(caught.value)


def test_the_users_own_devices_are_known_and_names_suggested(edgec: Run) -> None:
    folder = own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "mine.toml"
    try:
        own.write_text(_DEVICE + 'memory = { value = 2, unit = "GiB", kind = "measured", source = "free" }\n')
        told = json.loads(edgec("devices", "my-board", "--json").stdout)
        assert told[0]["memory"]["amount"] == 2 * 2**30
    finally:
        own.unlink()
    assert_refused(edgec("devices", "my-bord"), 2, "There is no device 'my-bord'")
    for said, meant in (
        ("pi-5", "pi-5-8gb"),
        ("pi5", "pi-5"),
        ("raspberry-pi-5", "pi-5"),
        ("orin", "jetson-orin-nano"),
    ):
        assert_refused(edgec("devices", said), 2, f"Did you mean {meant}")
    assert_refused(edgec("devices", "ssh://pi@board"), 2, "edgec devices add NAME --from ssh://pi@board")
    listed = edgec("devices")
    assert listed.returncode == 0 and "Raspberry Pi 5, 8 GB" in listed.stdout


def test_this_machine_is_measured_and_kept(edgec: Run) -> None:
    done = edgec("devices", "add", "here", "--from", "local", "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert told["memory"]["amount"] > 1e9 and told["bandwidth"]["amount"] > 1e8 and told["fp32"]["amount"] > 1e8
    assert told["int8"]["amount"] > 1e8 and told["int8"]["unit"] == "GOPS"
    kept = find_profile("here")
    assert kept.bandwidth is not None and kept.bandwidth.kind == "measured"
    assert_refused(edgec("devices", "add", "here", "--from", "local"), 2, "There is a device of that name")
    assert_refused(edgec("devices", "add", "board", "--from", "qemu:aarch64"), 2, "is emulated")
    assert_refused(edgec("devices", "add", "Here I am", "--from", "local"), 2, "A device cannot be called")
    for words in (("add", "here"), ("add", "--from", "local"), ("here", "--from", "local")):
        assert_refused(edgec("devices", *words), 2, "A device is added with")


def test_the_product_that_is_timed_is_one_of_integers() -> None:
    model = onnx.load_model_from_string(PRODUCT)
    onnx.checker.check_model(model, full_check=True)
    types = [each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)]
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32]


def test_bytes_are_those_of_inspect_and_speed_is_below_its_bound(model: Model) -> None:
    plan = _planned(model, "pi-5-8gb")
    assert {each.recipe.partition(":")[0] for each in plan.options} == {"gguf", "onnx", "tflite"}
    for each in plan.options:
        recipe = parse_recipe(each.recipe, TARGET_NAMES, schemes_of)
        if not each.flags:
            shaped = replace(recipe, shapes=replace(recipe.shapes, context_length=256))
            assert each.package_bytes == load_target(recipe.target).nbytes(model, shaped)
        assert each.tok_per_s is not None and each.bound_tok_per_s is not None and each.memory is not None
        assert each.tok_per_s.low < each.tok_per_s.middle < each.bound_tok_per_s
        assert each.memory.low < each.memory.middle < each.memory.high


def test_what_is_not_known_stays_unknown(model: Model) -> None:
    pixel, iphone = _planned(model, "pixel-8"), _planned(model, "iphone-15-pro")
    assert all(each.tok_per_s is None and each.bound_tok_per_s is None for each in pixel.options)
    assert all(each.memory is None for each in iphone.options) and iphone.options
    asked = _planned(model, "pixel-8", min_tok_per_s=1.0)
    assert asked.chosen is None and all("its speed is not known" in each.misses for each in asked.options)


def test_the_fastest_that_holds_every_wish_is_chosen(model: Model) -> None:
    plan = _planned(model, "pi-5-8gb")
    assert plan.chosen is not None and plan.chosen.quality in ("near-lossless", "good") and not plan.chosen.misses
    held = [each for each in plan.options if not each.misses]
    assert all((each.tok_per_s or Range(0, 0, 0)).middle <= plan.chosen.tok_per_s.middle for each in held)  # type: ignore[union-attr]
    strict = _planned(model, "pi-5-8gb", min_quality="near-lossless", max_kl=0.02)
    assert strict.chosen is not None and strict.chosen.quality == "near-lossless"
    assert (strict.chosen.distance or 1) <= 0.02
    none = _planned(model, "pi-5-8gb", max_memory_bytes=1000)
    assert none.chosen is None
    assert all(any("MB of memory" in miss for miss in each.misses) for each in none.options)


def _seen(**changes: object) -> Seen:
    fields = {
        "machine": "here", "runtime": "llamacpp", "recipe": "gguf:Q8_0", "model": "d" * 64, "package_bytes": 10**8,
        "read_bytes": 10**8, "memory_bytes": 2 * 10**8, "settings": settings_of(parse_recipe("gguf:Q8_0", ("gguf",)).full()),
        "context_length": 256, "bandwidth_share": 0.25, "figures": {"mean_kl": 0.5, "same_top1": 0.5},
    }  # fmt: skip
    return Seen(**{**fields, **changes})  # type: ignore[arg-type]


_HERE = profile_of_machine("here", "here", "x86_64", ("gguf", "onnx", "tflite"), 2, 8 * 10**9, 3e10)


def _planned_here(model: Model, seen: list[Seen]) -> Plan:
    return make_plan(model, "d" * 64, _HERE, Wishes(256), load_target, seen)


def test_a_plan_learns_from_what_was_measured(model: Model) -> None:
    before = _option(_planned_here(model, []), "gguf:Q8_0")
    after = _option(_planned_here(model, [_seen()] * 5), "gguf:Q8_0")
    assert before.tok_per_s is not None and after.tok_per_s is not None
    shares = COSTS["llamacpp"].shares
    assert shares is not None
    share = shares[2]
    assert after.tok_per_s.middle == pytest.approx(before.tok_per_s.middle * 0.25 / share)
    assert after.tok_per_s.high / after.tok_per_s.low < before.tok_per_s.high / before.tok_per_s.low
    assert (after.known, after.quality, before.known) == ("measured", "degraded", "expected")
    # Another model's memory holds a cache of another size, and its quality is its own.
    other = _option(_planned_here(model, [_seen(model="e" * 64)] * 5), "gguf:Q8_0")
    assert other.memory == before.memory and other.known == "expected"
    assert other.tok_per_s == after.tok_per_s
    # Another processor tells nothing of this one, nor other settings of this quality.
    assert _option(_planned_here(model, [_seen(machine="there")] * 5), "gguf:Q8_0") == before
    assert _option(_planned_here(model, [_seen(settings="other")] * 5), "gguf:Q8_0").known == "expected"
    # What it reached is not held to how fast memory is read just now.
    rated = [_seen(read_bytes_per_s=9e9)] * 5
    for bandwidth in (1e10, 6e10):
        here = profile_of_machine("here", "here", "x86_64", ("gguf",), 2, 8 * 10**9, bandwidth)
        found = _option(make_plan(model, "d" * 64, here, Wishes(256), load_target, rated), "gguf:Q8_0").tok_per_s
        assert found is not None and after.tok_per_s is not None
        assert found.middle == pytest.approx(after.tok_per_s.middle * 9e9 / (0.25 * 3e10))
    # Where a recipe was not seen, its runtime tells, from three measurements on.
    few, enough = (_option(_planned_here(model, [_seen()] * count), "gguf:F16") for count in (2, 3))
    assert few.tok_per_s != enough.tok_per_s


def test_a_token_takes_its_reading_and_its_computing(model: Model) -> None:
    """Of a fast memory the products hold it, of a slow one the bandwidth."""

    def speed(bandwidth: float, products: float) -> float:
        here = profile_of_machine("here", "here", "x86_64", ("gguf",), 2, 8 * 10**9, bandwidth, products)
        found = _option(make_plan(model, "d" * 64, here, Wishes(256), load_target, []), "gguf:Q8_0")
        assert found.tok_per_s is not None
        return found.tok_per_s.middle

    assert speed(1e14, 2e11) == pytest.approx(2 * speed(1e14, 1e11), rel=0.01)
    assert speed(2e9, 1e15) == pytest.approx(2 * speed(1e9, 1e15), rel=0.01)
    both = 1 / speed(1e10, 1e11)
    assert both == pytest.approx(1 / speed(1e10, 1e18) + 1 / speed(1e18, 1e11), rel=0.01)


def test_what_decoding_reached_is_not_discounted_again(model: Model) -> None:
    """A Pi 5 reads 11 GB/s of weights in decode by what others measured."""
    found = _option(_planned(model, "pi-5-8gb"), "gguf:Q8_0")
    profile = find_profile("pi-5-8gb")
    assert found.tok_per_s is not None and profile.decode_bandwidth is not None
    assert found.tok_per_s.middle == pytest.approx(profile.decode_bandwidth.amount / found.package_bytes, rel=0.3)
    assert found.tok_per_s.middle > profile.decode_bandwidth.amount / found.package_bytes


def test_the_first_token_follows_from_what_is_computed(model: Model) -> None:
    """Twice the products a second halve it; where only float64 is known the interval is wider; else nothing is told."""
    slow, fast = (
        make_plan(model, "d" * 64, replace(_HERE, fp32=figure), Wishes(256), load_target, [])
        for figure in (_figure(1e10), _figure(2e10))
    )
    first, second = (_option(each, "gguf:Q8_0").first_s for each in (slow, fast))
    assert first is not None and second is not None
    assert first.middle == pytest.approx(2 * second.middle)
    pi = _option(_planned(model, "pi-5-8gb"), "gguf:Q8_0").first_s
    assert pi is not None and pi.high / pi.low > first.high / first.low
    assert _option(_planned_here(model, []), "gguf:Q8_0").first_s is None
    here = replace(_HERE, fp32=_figure(1e10))
    seen = [_seen(products_share=0.1)] * 5
    learned = _option(make_plan(model, "d" * 64, here, Wishes(256), load_target, seen), "gguf:Q8_0").first_s
    assert learned is not None and learned.middle == pytest.approx(operations(model, 128) / 1e9)


def test_operations_are_those_of_the_matrices(model: Model) -> None:
    """Against torch's own count of a forward pass, but for what attention computes beside its matrices."""
    network = transformers.AutoModelForCausalLM.from_pretrained(model.folder, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        network(torch.ones((1, 64), dtype=torch.int64), logits_to_keep=1)
    assert operations(model, 64) == pytest.approx(counter.get_total_flops(), rel=0.02)


def _figure(amount: float) -> Figure:
    return Figure(amount / 1e9, "GFLOPS", "measured", "a test", amount)


_AMOUNT = st.integers(1, 6).map(float)


@given(st.lists(st.tuples(_AMOUNT, _AMOUNT, _AMOUNT), min_size=1, max_size=12))
def test_the_front_holds_the_best_of_everything(marks: list[tuple[float, float, float]]) -> None:
    def option(number: int, memory: float, speed: float, distance: float) -> Option:
        around = Range(speed, speed, speed)
        return Option(
            str(number),
            (),
            1,
            Range(memory, memory, memory),
            None,
            around,
            None,
            "good",
            {"mean_kl": distance},
            "expected",
        )

    options = [option(number, *each) for number, each in enumerate(marks)]
    front = _front(options)
    kept = [marks[int(each.recipe)] for each in front]
    assert min(memory for memory, _, _ in marks) in {memory for memory, _, _ in kept}
    assert max(speed for _, speed, _ in marks) in {speed for _, speed, _ in kept}
    assert min(distance for _, _, distance in marks) in {distance for _, _, distance in kept}
    for memory, speed, distance in marks:
        assert any(m <= memory and s >= speed and d <= distance for m, s, d in kept)


def test_what_bench_measures_is_remembered_without_names(
    model: Model, edgec: Run, minilm_folder: Path, tmp_path: Path
) -> None:
    own = {"XDG_DATA_HOME": str(tmp_path / "data")}
    encoder = tiny.save_encoder("bert", minilm_folder, tmp_path / "secret-name")
    assert edgec("build", encoder, "-r", "tflite:fp32", "-o", tmp_path / "out").returncode == 0
    done = edgec("bench", tmp_path / "out" / "tflite-fp32", "--rounds", 3, "--json", **own)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)
    file = tmp_path / "data" / "edgec" / "history.jsonl"
    if measured["verdict"]["word"] != "invalid":
        (line,) = file.read_text().splitlines()
        assert json.loads(line)["recipe"] == "tflite:fp32" and "secret" not in line
        assert json.loads(line)["products_share"] > 0
    assert measured["predicted"]["latency_s"] > 0 and measured["predicted"]["tok_per_s"] is None
    result, page = tmp_path / "result.jsonl", tmp_path / "page.html"
    result.write_text(json.dumps(measured) + "\n")
    assert edgec("compare", result, "--html", page).returncode == 0
    assert "Measured / predicted" in page.read_text() and "latency ms p50" in page.read_text()


def test_a_history_that_is_damaged_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert read_history() == []
    file = history_file()
    file.parent.mkdir(parents=True)
    line = json.dumps(asdict(_seen()))
    file.write_text("\n".join([line, "no json", '{"runtime": 1}', "[" * 100_000, line]))
    assert read_history() == [_seen(), _seen()]


def test_the_command_names_the_build(model: Model, edgec: Run) -> None:
    done = edgec("plan", model.folder, "--device", "pi-5-8gb", "--context", 256)
    assert done.returncode == 0, done.stderr
    assert (
        "--min-quality good --context-length 256 -o packages --verify" in done.stdout
        and "Fastest of those" in done.stdout
    )
    told = json.loads(edgec("plan", model.folder, "--device", "local", "--context", 256, "--json").stdout)
    assert told["chosen"]["recipe"] in {each["recipe"] for each in told["options"]}
    assert_refused(edgec("plan", model.folder, "--device", "pi5"), 2, "Did you mean")
    longest = model.geometry.context_length
    assert longest is not None
    assert_refused(
        edgec("plan", model.folder, "--device", "pi-5-8gb", "--context", longest + 1), 2, f"{longest} tokens at most"
    )


def test_what_cannot_be_had_is_told(edgec: Run, model: Model) -> None:
    told = json.loads(edgec("plan", model.folder, "--device", "pi-5-8gb", "--context", 256, "--json").stdout)
    assert any(each.startswith("coreml: there is no runtime") for each in told["refused"])
    named = {each["recipe"] for each in told["options"]} | {
        each.split(":")[0] + ":" + each.split(":")[1] for each in told["unfit"]
    }
    for target in ("gguf", "onnx", "tflite"):
        assert {f"{target}:{scheme}" for scheme in load_target(target).schemes} <= named
    shown = edgec("plan", model.folder, "--device", "pi-5-8gb", "--context", 256, "--all").stdout
    assert all(each.split(":")[1] in shown for each in told["unfit"])


def test_what_carries_the_same_codes_is_expected_to_cost_the_same(model: Model) -> None:
    """GGUF and ONNX were measured with int4-gptq-g32, Core ML and LiteRT were not; int8-gptq-g32 nowhere."""
    known = expected_quality()["language"]
    options = {each.recipe: each for device in ("mac-m4", "pi-5-8gb") for each in _planned(model, device).options}
    for recipe in ("coreml:int4-gptq-g32", "tflite:int4-gptq-g32"):
        assert recipe not in known and options[recipe].known == "expected"
        assert options[recipe].figures == known["onnx:int4-gptq-g32"]
    assert options["gguf:int8-gptq-g32"].known == "unknown" and options["gguf:Q5_K_M"].known == "unknown"


def test_what_recipes_cost_was_measured_for_both_kinds() -> None:
    known = expected_quality()
    assert known["language"]["gguf:Q8_0"]["mean_kl"] < known["language"]["gguf:Q4_0"]["mean_kl"]
    assert known["encoders"]["onnx:fp32"]["relative_error"] < known["encoders"]["onnx:int8"]["relative_error"]


def _llama_of(model: Model, hidden: int, inner: int, layers: int, heads: int) -> Model:
    """A Llama of that shape in bfloat16, by its shapes alone: nothing of it lies anywhere."""
    shapes = {
        "model.embed_tokens.weight": (32000, hidden),
        "lm_head.weight": (32000, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{prefix}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    config = {
        **model.config, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": 32000,
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    tensors = tuple(
        replace(model.tensors[0], name=name, shape=shape, dtype="BF16", nbytes=2 * math.prod(shape))
        for name, shape in shapes.items()
    )
    geometry = replace(
        model.geometry, layers=layers, hidden_size=hidden, heads=heads, kv_heads=heads, head_dim=hidden // heads,
        vocabulary=32000, context_length=4096,
    )  # fmt: skip
    return replace(model, config=config, tensors=tensors, geometry=geometry)


def test_whether_a_language_model_fits_an_inferentia2_at_a_batch_and_context(model: Model) -> None:
    """Llama 2 of 7 billion parameters: 13.5 GB in bfloat16, and 0.54 GB of cache for a thousand tokens."""
    seven = _llama_of(model, 4096, 11008, 32, 32)
    chip = find_profile("inf2-xlarge")
    assert chip.engine_cores == 2 and chip.memory is not None and chip.memory.amount == 32 * 2**30

    def option(batch: int, context: int, recipe: str, of: Model = seven) -> Option:
        return _option(_planned(of, "inf2-xlarge", context=context, batch=batch), recipe)

    one, shared = option(1, 1024, "neuron:bf16"), option(1, 1024, "neuron:bf16+tp2")
    assert one.memory is not None and one.memory.middle == pytest.approx(13.48e9 + 0.537e9, rel=0.02)
    assert not any("memory" in miss for miss in (*one.misses, *shared.misses)) and (one.cores, shared.cores) == (1, 2)
    # Of one core's 16 GiB too much at 8 thousand tokens in all, of both cores' 32 GiB not.
    assert any("of memory" in miss for miss in option(2, 4096, "neuron:bf16").misses)
    two = option(2, 4096, "neuron:bf16+tp2")
    assert not any("of memory" in miss for miss in two.misses)
    assert any("one text at a time" in note for note in two.notes) and not two.misses
    # A graph reads its whole cache for every token: 0.54 GB, and eight times that.
    assert shared.bound_tok_per_s == pytest.approx(820 * 2**30 / (13.2e9 + 0.537e9), rel=0.02)
    assert two.bound_tok_per_s == pytest.approx(2 * 820 * 2**30 / (13.2e9 + 8 * 0.537e9), rel=0.02)
    # Keys and values of float32 graphs are float32.
    halves, floats = option(1, 256, "neuron:bf16+tp2", model), option(1, 256, "neuron:fp32+tp2", model)
    assert halves.memory is not None and floats.memory is not None
    cache = 2 * model.geometry.layers * model.geometry.kv_heads * model.geometry.head_dim * 256 * 2
    assert floats.memory.middle - floats.package_bytes == 2 * cache == 2 * (halves.memory.middle - halves.package_bytes)
    # What is missing is told: 26 GB of weights and 13.4 GB of caches in 34.4 GB.
    large = option(4, 4096, "neuron:bf16+tp2", _llama_of(model, 5120, 13824, 40, 40))
    (missing,) = [miss for miss in large.misses if "of memory" in miss]
    lacking = float(missing.rpartition(", ")[2].partition(" MB")[0].replace(",", ""))
    needed = float(missing.partition("up to ")[2].partition(" MB")[0].replace(",", ""))
    assert needed - lacking == pytest.approx(32 * 2**30 / 1e6, abs=2)
    assert not any(each.recipe.endswith("+tp3") for each in _planned(seven, "inf2-xlarge").options)


def test_what_a_million_tokens_cost_follows_from_the_price_that_is_given(edgec_here: Run, model: Model) -> None:
    words = ("--context", 256, "--price-per-hour", 0.76, "--min-quality", "unusable", "--all")
    done = edgec_here("plan", model.folder, "--device", "inf2-xlarge", *words)
    assert done.returncode == 0, done.stderr
    assert "of a device that decodes without a rest" in done.stdout and "≥ 0.0" in done.stdout
    assert "without a rest" not in edgec_here("plan", model.folder, "--device", "inf2-xlarge", "--context", 256).stdout
    told = edgec_here("plan", model.folder, "--device", "pi-5-8gb", *words, "--json").stdout
    assert all(each["price_per_million_tokens"] > 0 for each in json.loads(told)["options"])
    told = edgec_here("plan", model.folder, "--device", "pi-5-8gb", *words).stdout
    assert "without a rest" in told and "≥ 0.0" not in told


def test_a_plan_that_nothing_holds_ends_with_1(edgec_here: Run, model: Model) -> None:
    words = ("plan", model.folder, "--device", "pi-5-8gb", "--context", 256, "--max-memory", "1KB")
    done = edgec_here(*words)
    assert_refused(done, 1, "No recipe holds all of it")
    told = edgec_here(*words, "--json")
    document = json.loads(told.stdout)
    assert told.returncode == 1 and document["chosen"] is None
    assert all("more than it may take" in " ".join(each["misses"]) for each in document["options"])


def test_what_is_of_tokens_is_refused_for_an_encoder(edgec_here: Run, minilm_folder: Path) -> None:
    for words in (("--min-tok-per-s", 8), ("--context", 128), ("--price-per-hour", 1)):
        assert_refused(edgec_here("plan", minilm_folder, "--device", "pi-5-8gb", *words), 2, "is no language model")


def test_a_batch_of_an_encoder_is_refused(edgec_here: Run, minilm_folder: Path) -> None:
    assert_refused(
        edgec_here("plan", minilm_folder, "--device", "pi-5-8gb", "--batch", 2), 2, "--batch is for language models"
    )
