"""neuron: HLO modules for AWS Inferentia2 and Trainium, proved on XLA:CPU, linted, and finished by a compiler on the PATH."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import Run, assert_refused, figures_of, verification_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxlib import _hlo  # type: ignore[attr-defined]

from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.hlo import (
    aliases_of,
    entry_of,
    instructions_of,
    parameters_of,
    parse_module,
    read_module,
    renumber,
    require_plain,
    results_of,
    write_module,
)
from compiler.formats.safetensors import list_tensors
from compiler.model import Model
from compiler.networks.ranks import Cut, whole
from compiler.package import read_package
from runtimes.lengths import chunk_length
from runtimes.verify.verification import read_verification
from targets.neuron.error_codes import explain
from targets.neuron.lint import find_faults, require_accepted

_DECODERS = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "mistral", "phi3")
_SHARED = ("qwen2", "gemma2", "gemma3", "phi3")
_ENCODERS = ("bert-classify", "bert-answers", "bert-mask", "roberta", "vit")


@pytest.fixture(scope="module")
def built(smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neuron")
    llama = tiny.save_decoder("llama", smollm2.folder, out / "llama")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    recipes = ("-r", "neuron:fp32", "-r", "neuron:bf16", "-r", "neuron:fp32+tp2", "-r", "neuron:fp32+tp4")
    done = edgec_here("build", llama, *recipes, "--context-length", 96, "--verify", "-o", out / "llama-out")
    assert done.returncode == 0, done.stdout + done.stderr
    others = ("-r", "neuron:fp32", "-r", "neuron:bf16", "-r", "neuron:fp32@trn2+lengths")
    done = edgec_here("build", bert, *others, "--sequence-length", 32, "--verify", "-o", out / "bert-out")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_language_model_computes_the_same_on_any_number_of_cores(built: Path) -> None:
    """With four cores and two heads of keys, two cores have the same head."""
    for name in ("fp32", "fp32-tp2", "fp32-tp4"):
        folder = built / "llama-out" / f"neuron-{name}"
        assert figures_of(folder)["mean_kl"] < 1e-6 and verification_of(folder).lowered_right
        assert len(list((folder / "weights").iterdir())) == int(name[-1]) if "tp" in name else 1


def test_bfloat16_is_as_far_off_as_rounding_explains(built: Path) -> None:
    found = verification_of(built / "llama-out" / "neuron-bf16")
    assert found.lowered_right and found.lowering is not None
    assert found.lowering.distance is not None
    assert 0.3 < found.lowering.distance / found.lowering.explained < 2
    assert figures_of(built / "bert-out" / "neuron-bf16")["mean_cosine"] > 0.999


def test_a_text_of_several_lengths_goes_to_the_graph_that_holds_it(built: Path) -> None:
    package = read_package(built / "bert-out" / "neuron-fp32-trn2-lengths")
    assert [graph.name for graph in package.lowered.graphs] == ["main_64", "main_128", "main_256"]
    _apart(
        """
ids = np.arange(5, 15)[None]
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
short = session.run(inputs)
longer = {name: np.pad(value, ((0, 0), (0, 90))) for name, value in inputs.items()}
for name, value in session.run(longer).items():
    np.testing.assert_allclose(value[:, :10] if value.ndim == 3 else value, short[name], atol=2e-5)
""",
        package.folder,
    )


def test_a_prompt_goes_to_the_graph_that_holds_it(built: Path, edgec_here: Run, tmp_path: Path) -> None:
    words = ("-r", "neuron:fp32+lengths", "--context-length", 128, "--verify", "-o", tmp_path)
    done = edgec_here("build", built / "llama", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    package = read_package(tmp_path / "neuron-fp32-lengths")
    assert [graph.name for graph in package.lowered.graphs] == ["prefill_32", "prefill_128", "decode"]
    assert figures_of(package.folder)["mean_kl"] < 1e-6
    script = (package.folder / "compile.sh").read_text()
    assert all(f"compile {graph.name}.hlo_module.pb" in script for graph in package.lowered.graphs)


@given(st.integers(1, 300), st.sets(st.sampled_from([8, 32, 128, 512])), st.sampled_from([64, 128, 512, 1024]))
def test_chunks_cover_a_text_and_never_reach_beyond_the_cache(tokens: int, sizes: set[int], context: int) -> None:
    lengths, position = {1, *sizes}, 0
    tokens = min(tokens, context)
    while position < tokens:
        length = chunk_length(tokens - position, position, lengths, context)
        assert length in lengths and position + length <= context
        position += min(length, tokens - position)
    # One that holds all is taken where there is one, and the smallest of those.
    holding = [length for length in lengths if tokens <= length <= context]
    assert not holding or chunk_length(tokens, 0, lengths, context) == min(holding)


def _apart(code: str, folder: Path) -> None:
    """Run code on a session in a process of its own: XLA's threads and other tests' forks do not go together."""
    begin = (
        "import sys; from pathlib import Path; import numpy as np; from compiler.package import read_package\n"
        "from runtimes.registry import open_session\n"
        "session = open_session(read_package(Path(sys.argv[1])), 1, proving=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", begin + code, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", _DECODERS)
def test_every_family_of_decoders(family: str, smollm2: Model, edgec_here: Run, tmp_path: Path) -> None:
    """Some of them shared by two cores: biases, norms of heads and caps of scores are cut with their matrices."""
    model = tiny.save_decoder(family, smollm2.folder, tmp_path / "model")
    recipe = "neuron:fp32+tp2" if family in _SHARED else "neuron:fp32"
    done = edgec_here("build", model, "-r", recipe, "--context-length", 64, "--verify", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures_of(next((tmp_path / "out").iterdir()))["mean_kl"] < 1e-6


@pytest.mark.parametrize("family", _ENCODERS)
def test_every_family_of_encoders(family: str, minilm_folder: Path, edgec_here: Run, tmp_path: Path) -> None:
    model = tiny.save_encoder(family, minilm_folder, tmp_path / "model")
    done = edgec_here("build", model, "-r", "neuron:fp32", "--sequence-length", 32, "--verify", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert verification_of(tmp_path / "out" / "neuron-fp32").lowered_right


def test_a_module_is_in_the_form_that_the_compiler_wants(built: Path) -> None:
    """Numbers below 2^31 without a gap, callees first, arrays row by row, a flat tuple, caches in their own places."""
    path = built / "llama-out" / "neuron-fp32" / "decode.hlo_module.pb"
    module = read_module(path)
    assert [each.id for each in instructions_of(module)] == list(
        range(sum(len(c.instructions) for c in module.computations))
    )
    assert module.computations[-1].id == module.entry_computation_id
    names = [each.name for each in parameters_of(module)]
    assert names[:3] == ["input_ids", "position", "keys_0"] and "blocks.0.gate.weight" in names
    results = [each.name for each in results_of(module)]
    assert results == ["logits", "keys_0", "keys_1", "values_0", "values_1"]
    assert {results[result]: names[taken] for result, taken in aliases_of(module).items()} == {
        each: each for each in results[1:]
    }
    # XLA's own reader takes it, and prints the same names.
    text = _hlo.XlaComputation(path.read_bytes()).as_hlo_text()
    assert "input_output_alias" in text and "ENTRY" in text


def test_cores_tell_each_other_their_sums(built: Path) -> None:
    module = read_module(built / "llama-out" / "neuron-fp32-tp2" / "decode.hlo_module.pb")
    sums = [each for each in instructions_of(module) if each.opcode == "all-reduce"]
    assert len(sums) == 4  # attention and feed-forward of two layers
    assert [list(group.replica_ids) for group in sums[0].replica_groups] == [[0, 1]]


def test_weights_of_the_ranks_are_the_models(built: Path) -> None:
    def stored(name: str, rank: int) -> dict[str, np.ndarray]:
        file = built / "llama-out" / name / "weights" / f"tp{rank}_sharded_checkpoint.safetensors"
        return {
            each.name: np.memmap(each.file, np.float32, "r", each.offset, each.shape) for each in list_tensors(file)
        }

    alone, ranks = stored("neuron-fp32", 0), [stored("neuron-fp32-tp4", rank) for rank in range(4)]
    for name, values in alone.items():
        np.testing.assert_array_equal(whole([each[name] for each in ranks], name), values)
    assert ranks[0]["blocks.0.gate.weight"].shape == (32, 64) and ranks[0]["blocks.0.down.weight"].shape == (64, 32)


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["key", "query", "output"]))
@settings(max_examples=30, deadline=None)
def test_parts_make_the_whole(ranks: int, kv_heads: int, part: str) -> None:
    values = np.arange(16 * 8 * 8, dtype=np.float32).reshape(16 * 8, 8)
    cut, name = Cut(ranks, kv_heads), f"blocks.0.attention.{part}.weight"
    if part == "key" and kv_heads < ranks and ranks % kv_heads:
        return
    np.testing.assert_array_equal(whole([cut.part(values, name, rank) for rank in range(ranks)], name), values)


def test_two_builds_give_the_same_bytes(built: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("-r", "neuron:fp32+tp2", "--context-length", 96, "-o", tmp_path / "out")
    done = edgec("build", built / "llama", *words, EDGEC_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    first, second = (read_package(each / "neuron-fp32-tp2") for each in (built / "llama-out", tmp_path / "out"))
    assert first.files == second.files
    for name in first.files:
        assert b"/site-packages/" not in (first.folder / name).read_bytes()


def test_an_unfinished_package_is_proved_and_not_used(built: Path, edgec: Run, edgec_here: Run) -> None:
    told = edgec_here("verify", built / "bert-out" / "neuron-fp32")
    assert told.returncode == 0 and "UNFINISHED: what is there was verified" in told.stdout
    folder = built / "bert-out" / "neuron-fp32"
    assert verification_of(folder).passed
    for command in (("run", folder, "-p", "a"), ("bench", folder)):
        assert_refused(edgec(*command), 2, "unfinished", "neuronx-cc", "Neuron SDK")


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("neuron:fp32+tp3", (), ("3 cores cannot share", "+tp2, +tp4")),
        ("neuron:fp32@trn1+tp4", (), ("trn1 takes 2, 8, 16, 32 cores at once", "+tp2")),
        ("neuron:fp32+tp2+tp4", (), ("one number of cores",)),
        ("neuron:fp32", ("--context-length", 500), ("at most 256", "asks for 500")),
        ("neuron:fp32@inf1", (), ("no variant @inf1", "@inf2")),
        ("neuron:int4-rtn-g32", (), ("no scheme int4-rtn-g32",)),
    ],
)
def test_what_cannot_be_lowered_is_refused_before_any_work(
    recipe: str, options: tuple[str, ...], words: tuple[str, ...], built: Path, edgec: Run, tmp_path: Path
) -> None:
    assert_refused(edgec("build", built / "llama", "-r", recipe, *options, "-o", tmp_path / "out"), 2, *words)


@pytest.mark.parametrize(
    ("opcode", "words"),
    [
        ("topk", ("NCC_EVRF001", "largest value")),
        ("while", ("unroll",)),
        ("erf", ("exponential",)),
        ("custom-call", ("NCC_EVRF015",)),
        ("stochastic-convert", ("nothing says",)),
    ],
)
def test_an_operator_that_neuron_lacks_is_named(opcode: str, words: tuple[str, ...], built: Path) -> None:
    module = read_module(built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb")
    changed = next(each for each in instructions_of(module) if each.opcode == "tanh" or each.opcode == "exponential")
    changed.opcode = opcode
    with pytest.raises(CheckFailed) as refused:
        require_accepted(module, "main", "inf2")
    assert changed.name in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("opcode", "code"),
    [("dot", "EVRF035"), ("scatter", "EVRF060"), ("all-reduce", "EVRF061"), ("reduce-scatter", "EVRF063")],
)
def test_what_neuron_computes_of_no_integers_is_named(opcode: str, code: str, built: Path) -> None:
    module = read_module(built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb")
    changed = next(each for each in instructions_of(module) if each.opcode == "dot")
    changed.opcode, changed.shape.element_type = opcode, 4
    with pytest.raises(CheckFailed, match=code):
        require_accepted(module, "main", "inf2")


@pytest.mark.parametrize(
    ("number", "words"), [(12, ("f64", "ESPP004")), (5, ("s64",)), (15, ("c64", "EVRF004")), (99, ("type 99",))]
)
def test_an_element_type_that_neuron_lacks_is_named(number: int, words: tuple[str, ...], built: Path) -> None:
    module = read_module(built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb")
    next(instructions_of(module)).shape.element_type = number
    told = " ".join(find_faults(module, "inf2"))
    assert all(word in told for word in words)


def test_numbers_layouts_and_sizes_are_held_to_the_compilers(built: Path) -> None:
    module = read_module(built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb")
    entry = entry_of(module)
    assert not list(find_faults(module, "inf2"))
    last = entry.instructions[-1]
    last.id = entry.root_id = 1 << 31
    parameters = [each for each in entry.instructions if each.opcode == "parameter"]
    parameters[3].shape.layout.minor_to_major[:] = [0, 1]
    parameters[4].shape.dimensions[:] = [1 << 31, 64]
    parameters[5].shape.is_dynamic_dimension[:] = [True, False]
    told = " ".join(find_faults(module, "inf2"))
    for words in ("2^31 and more", "row by row", "NCC_EVRF023", "NCC_EMOD025", "GiB are missing"):
        assert words in told


def test_a_model_that_does_not_fit_says_how_much_is_missing(built: Path) -> None:
    module = read_module(built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb")
    parameters = [each for each in entry_of(module).instructions if each.opcode == "parameter"]
    matrices = [each for each in parameters if len(each.shape.dimensions) == 2][3:12]
    for each in matrices:
        each.shape.dimensions[:] = [1 << 20, 1 << 9]
    (told,) = find_faults(module, "inf2")
    assert len(matrices) == 9 and "take 18.0 GiB" in told and "2.0 GiB are missing [NCC_EVRF009]" in told


def test_renumbering_keeps_what_is_computed(built: Path) -> None:
    path = built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb"
    module = read_module(path)
    for computation in module.computations:
        lift = (computation.id + 1) << 32
        for each in computation.instructions:
            each.id += lift
            each.operand_ids[:] = [number + lift for number in each.operand_ids]
        computation.root_id += lift
    assert max(each.id for each in instructions_of(module)) > 1 << 32
    renumber(module)
    assert write_module(module) == path.read_bytes()


@pytest.mark.parametrize("opcode", ["custom-call", "while", "infeed", "outfeed", "call", "send"])
def test_nothing_but_arithmetic_is_run(opcode: str, built: Path) -> None:
    """XLA's own process has callbacks that a module could name."""
    module = read_module(built / "bert-out" / "neuron-fp32" / "main.hlo_module.pb")
    require_plain(module, "main")
    next(
        each for each in instructions_of(module) if each.opcode == "tanh" or each.opcode == "exponential"
    ).opcode = opcode
    with pytest.raises(UnusableInput, match="was not run"):
        require_plain(module, "main")


def test_texts_that_come_piece_by_piece_are_read_alike(built: Path) -> None:
    """The last chunk, filled up, would reach beyond the cache of 96 tokens."""
    _apart(
        """
ids = [int(each) for each in np.random.default_rng(0).integers(5, 500, 95)]
whole = session.score(ids)
session.reset()
rows = [session.extend(ids[:41]), session.extend(ids[41:70]), session.extend(ids[70:95])]
np.testing.assert_allclose(np.stack(rows), whole[[40, 69, 94]], atol=2e-4)
""",
        built / "llama-out" / "neuron-fp32",
    )


def test_twelve_ranks_are_put_together_in_their_order(tmp_path: Path) -> None:
    from runtimes.stored.neuron import _rank_of

    names = [f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in range(12)]
    assert sorted(sorted(names), key=_rank_of) == names


@pytest.mark.parametrize("data", [b"", b"\x0a\x05", b"hello, this is no module", b"\x00" * 64])
def test_what_is_no_module_is_refused(data: bytes) -> None:
    with pytest.raises(UnusableInput, match="no HLO module"):
        parse_module(data, "x.pb")


def test_codes_are_explained() -> None:
    assert explain("IMGS123 loaded [NCC_EVRF035] then [ERROR] [NCC_EVRF007] x")[0] == "NCC_EVRF007"
    assert "larger one" in explain("[F137] neuronx-cc was forcibly killed")[1]
    assert "blocks" in explain("[NCC_EVRF044]")[1] and "2^24" in explain("[NCC_EVRF061]")[1]
    assert explain("nothing") == ("", "it gave no error code.")


def test_the_package_says_what_it_is(built: Path) -> None:
    document = json.loads((built / "llama-out" / "neuron-bf16" / "package.json").read_text())
    assert document["unfinished"]["step"] == "compiling with neuronx-cc"
    assert [graph["name"] for graph in document["graphs"]] == ["prefill", "decode"]
    assert [port["name"] for port in document["graphs"][1]["states"]] == ["keys_0", "keys_1", "values_0", "values_1"]


def test_minilm_goes_to_aws_as_far_as_a_machine_without_it_goes(
    minilm_folder: Path, edgec_here: Run, tmp_path: Path
) -> None:
    """Compiled here and held to the model; compiled for a board, where it is to be verified; as modules that are proved."""
    recipes = [word for recipe in ("neo:fp32@local", "neo:fp32@aarch64", "neuron:bf16") for word in ("-r", recipe)]
    done = edgec_here("build", minilm_folder, *recipes, "--verify", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    local, board, chip = (
        read_package(tmp_path / "out" / name) for name in ("neo-fp32-local", "neo-fp32-aarch64", "neuron-bf16")
    )
    assert float(figures_of(local.folder)["max_abs_difference"]) < 1e-4
    assert "neuron:bf16: UNFINISHED" in done.stdout and chip.lowered.unfinished is not None
    assert verification_of(chip.folder).passed and float(figures_of(chip.folder)["min_cosine"]) > 0.999
    assert read_verification(board) is None and "neo:fp32@aarch64" in done.stdout
    assert board.artifact.read_bytes()[18:20] == (183).to_bytes(2, "little")
