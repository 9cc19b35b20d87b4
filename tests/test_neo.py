"""neo: edgec's own networks, and ONNX exports, compiled by TVM with schedules of ours; for this machine and for others."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tvm
from conftest import Run, assert_refused, figures_of, verification_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from compiler.errors import UnusableInput
from compiler.package import read_package, write_manifest
from runtimes.registry import open_session
from targets.neo import kernels
from targets.neo.machines import VARIANTS, Machine, machine_of
from targets.neo.schedules import schedule

_KINDS = ("bert-classify", "bert-answers", "bert-mask", "roberta", "vit")
_AVX2 = Machine("Linux", "x86_64", {"kind": "llvm", "mcpu": "x86-64-v3"}, 8, 4, 24)


@pytest.mark.parametrize("kind", _KINDS)
def test_every_kind_of_encoder_with_a_length_that_fills_no_tile(
    kind: str, minilm_folder: Path, edgec_here: Run, tmp_path: Path
) -> None:
    """30 tokens are filled up to 32; a picture of 16 patches and a first token to 24."""
    model = tiny.save_encoder(kind, minilm_folder, tmp_path / "model")
    options = ("--sequence-length", 30, "--verify", "-o", tmp_path / "out")
    done = edgec_here("build", model, "-r", "neo:fp32", "-r", "neo:fp16", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = verification_of(tmp_path / "out" / "neo-fp32")
    assert found.lowered_right and (figures_of(tmp_path / "out" / "neo-fp32")["relative_error"] or 0) < 1e-5
    assert verification_of(tmp_path / "out" / "neo-fp16").lowered_right
    account = read_package(tmp_path / "out" / "neo-fp16").lowered.weights
    assert 16 < account.effective_bits_per_weight < 24 and set(account.types) == {"fp16", "fp32"}
    small, large = (read_package(tmp_path / "out" / f"neo-{name}").nbytes for name in ("fp16", "fp32"))
    assert small < large


@pytest.mark.parametrize("kind", ["mpnet", "resnet"])
def test_what_has_no_network_of_ours_goes_through_onnx(
    kind: str, minilm_folder: Path, edgec_here: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    model = tiny.save_resnet(folder) if kind == "resnet" else tiny.save_encoder(kind, minilm_folder, folder)
    words = ("-r", "neo:fp32", "--sequence-length", 32, "--verify", "-o", tmp_path / "out")
    done = edgec_here("build", model, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert verification_of(tmp_path / "out" / "neo-fp32").lowered_right


def _computed(kernel: Any, given: Sequence[np.ndarray], *rest: object) -> np.ndarray:
    """What a scheduled kernel makes of arrays, on a machine with AVX2."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{number}", relax.TensorType(each.shape, "float32")) for number, each in enumerate(given)]
    with builder.function("main", variables):
        with builder.dataflow():
            out = builder.emit_output(builder.emit_te(kernel, *variables, *rest))
        builder.emit_func_output(out)
    module = schedule(builder.get(), _AVX2)
    functions = [each for each in module.functions.values() if not isinstance(each, relax.Function)]
    assert all("tirx.is_scheduled" in each.attrs for each in functions)
    runner = relax.VirtualMachine(relax.build(module, target=tvm.target.Target(dict(_AVX2.llvm))), tvm.cpu())
    found: np.ndarray = runner["main"](*(tvm.runtime.tensor(each) for each in given)).numpy()
    return found


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([1, 3, 8, 12]), st.sampled_from([1, 5, 16]), st.sampled_from([1, 7, 24, 50]))
def test_packed_products_are_products(rows: int, inputs: int, outputs: int) -> None:
    x, weight = _random(2, rows, inputs), _random(inputs, outputs)
    found = _computed(kernels.packed_product, [x, kernels.pack(weight, 8)])
    np.testing.assert_allclose(found[..., :outputs], x @ weight, atol=1e-4)
    assert not found[..., outputs:].any()


def test_attention_kernels_compute_attention() -> None:
    batch, tokens, heads, width = 2, 16, 3, 8
    channels = heads * width
    mixed, mask = _random(batch, tokens, 3 * channels), _random(batch, tokens)
    query, key, value = (
        each.reshape(batch, tokens, heads, width).transpose(0, 2, 1, 3) for each in np.split(mixed, 3, 2)
    )
    keys = _computed(kernels.keys_turned, [mixed], heads, width, channels)
    np.testing.assert_array_equal(keys, key.transpose(0, 1, 3, 2))
    scores = _computed(kernels.attention_scores, [mixed, keys, mask], 0.5)
    np.testing.assert_allclose(scores, query @ keys * 0.5 + mask[:, None, None], atol=1e-4)
    found = _computed(kernels.attention_mix, [scores, mixed], width, 2 * channels)
    np.testing.assert_allclose(found, (scores @ value).transpose(0, 2, 1, 3), atol=1e-3)


@pytest.fixture(scope="module")
def crossed(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crossed")
    model = tiny.save_encoder("bert", minilm_folder, out / "bert")
    recipes = ["-r", "neo:fp32@x86-64-v3", "-r", "neo:fp32@local"]
    if shutil.which("aarch64-linux-gnu-g++"):
        recipes += ["-r", "neo:fp32@aarch64", "-r", "neo:fp32@cortex-a76"]
    done = edgec_here("build", model, *recipes, "--sequence-length", 32, "-o", out / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "out"


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs Debian's g++-aarch64-linux-gnu")
def test_a_library_for_arm_is_one_of_that_machine(crossed: Path, edgec: Run) -> None:
    for name in ("aarch64", "cortex-a76"):
        head = (crossed / f"neo-fp32-{name}" / "compiled.so").read_bytes()[:20]
        assert head[:4] == b"\x7fELF" and struct.unpack("<H", head[18:20]) == (183,)
        package = read_package(crossed / f"neo-fp32-{name}")
        assert package.lowered.platform is not None and package.lowered.platform.machine == "aarch64"
    assert_refused(edgec("verify", crossed / "neo-fp32-aarch64"), 2, "for aarch64 on Linux", "this machine is")


def test_what_this_processor_lacks_is_told_before_it_ends_the_process(
    crossed: Path, edgec: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(crossed / "neo-fp32-x86-64-v3", folder)
    package = read_package(folder)
    assert package.lowered.platform is not None and "avx2" in package.lowered.platform.instructions
    needs = replace(package.lowered.platform, instructions=("avx2", "avx9000"))
    write_manifest(replace(package, lowered=replace(package.lowered, platform=needs)))
    assert_refused(edgec("verify", folder, "--trust"), 2, "a processor with avx9000, which this one has not")


def test_two_builds_give_the_same_bytes(crossed: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("-r", "neo:fp32@x86-64-v3", "--sequence-length", 32, "-o", tmp_path / "out")
    done = edgec("build", crossed.parent / "bert", *words, EDGEC_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    first, second = (read_package(each / "neo-fp32-x86-64-v3") for each in (crossed, tmp_path / "out"))
    assert first.files == second.files


def test_it_runs_with_tvms_runtime_alone(crossed: Path) -> None:
    """What a board needs: no compiler is loaded."""
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from compiler.package import read_package; from runtimes.tvm import open_session\n"
        "session = open_session(read_package(Path(sys.argv[1])), 1)\n"
        "ids = np.ones((1, 32), np.int64)\n"
        "print(sorted(session.run({'input_ids': ids, 'attention_mask': ids, 'token_type_ids': ids * 0})))\n"
        "maps = Path('/proc/self/maps').read_text()\n"
        "assert 'libtvm_compiler' not in maps and 'libtvm_runtime' in maps\n"
    )
    command = [sys.executable, "-P", "-c", code, str(crossed / "neo-fp32-local")]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    assert "last_hidden_state" in done.stdout


@pytest.mark.parametrize("token", [10**9, -1])
def test_ids_beyond_the_table_read_nothing_behind_it(token: int, crossed: Path) -> None:
    session = open_session(read_package(crossed / "neo-fp32-local"), 1)
    ids = np.full((1, 32), token)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    with pytest.raises(UnusableInput, match="rows"):
        session.run(inputs)


def test_tiles_fit_the_registers_and_the_stack() -> None:
    """TVM keeps tiles of up to 1024 bytes where LLVM can take them into registers."""
    for variant in VARIANTS:
        if ("aarch64" in variant or "cortex" in variant) and not shutil.which("aarch64-linux-gnu-g++"):
            continue
        machine = machine_of(variant)
        assert machine.rows * machine.columns * 4 <= 1024 and machine.columns % machine.lanes == 0


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("neo:fp32@mars", ("no variant @mars", "@local", "@aarch64", "@ml_c5")),
        ("neo:int8", ("no scheme int8", "neo:fp16")),
    ],
)
def test_what_it_lacks_is_refused(
    recipe: str, words: tuple[str, ...], crossed: Path, edgec: Run, tmp_path: Path
) -> None:
    assert_refused(edgec("build", crossed.parent / "bert", "-r", recipe, "-o", tmp_path / "out"), 2, *words)


def test_without_a_linker_for_it_nothing_is_compiled(crossed: Path, edgec: Run, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("gcc", "g++", "cc", "c++", "ld", "as"):
        if (found := shutil.which(name)) is not None:
            (tmp_path / "bin" / name).symlink_to(found)
    words = ("-r", "neo:fp32@aarch64", "--sequence-length", 16, "-o", tmp_path / "out")
    done = edgec(
        "build", crossed.parent / "bert", *words, PATH=str(tmp_path / "bin"), EDGEC_CACHE=str(tmp_path / "cache")
    )
    assert_refused(done, 2, "aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
