"""edgec matrix: models x recipes x devices on one machine and on a cluster, and what becomes of it when a worker dies."""

from __future__ import annotations

import json
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from cluster import cluster, lines_of
from conftest import Run, assert_refused

import edgec
from benchmarks.matrix.cell import Cell, Result, from_text, to_text
from benchmarks.matrix.file import read_matrix
from benchmarks.measurement import read_measurements
from compiler.cli.fleet.run import Work, run_on_cluster
from compiler.cli.fleet.work import BuildOrder, MeasureOrder, build_one, measure_one, result_key
from compiler.errors import UnusableInput
from compiler.inputs.identity import digest_model
from compiler.quantize.options import QuantizationOptions
from compiler.recipe import Shapes
from runtimes.workload import Workload

_WORKLOAD = "[workload]\nprompt_tokens = 8\ngenerated_tokens = 4\nrounds = 3\nrepetitions = 3\n"


def _file(folder: Path, tiny_models: Path, recipes: list[str], more: str = "") -> Path:
    file = folder / "matrix.toml"
    named = [str(tiny_models / "llama"), str(tiny_models / "bert")]
    lists = f'models = {json.dumps(named)}\nrecipes = {json.dumps(recipes)}\ndevices = ["local"]\n'
    file.write_text(lists + "sequence_length = 32\n" + more + _WORKLOAD)
    return file


@pytest.fixture(scope="module")
def run(tiny_models: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("here")
    file = _file(out, tiny_models, ["onnx:int4-rtn-g32", "gguf:int4-rtn-g32", "tflite:int8"])
    done = edgec_here("matrix", file, "-o", out / "out")
    # The tiny BERT has a vocabulary that llama.cpp reads otherwise: fail closed, and go on with the others.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gguf:int4-rtn-g32" in done.stderr and "tokenizer" in done.stderr
    return out / "out"


def test_every_cell_is_told_of_with_what_was_predicted(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "cells.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    status = {(Path(row["model"]).name, row["recipe"]): row["status"] for row in rows}
    assert status.pop(("bert", "gguf:int4-rtn-g32")) == "failed"
    assert set(status.values()) == {"measured"}
    for row in rows:
        if row["status"] == "measured":
            assert row["package_bytes"] > 0 and row["peak_rss_bytes"] > 0 and row["verdict"]
            assert 0.5 < row["predicted_package_bytes"] / row["package_bytes"] < 2
    assert pyarrow.parquet.read_table(run / "cells.parquet").num_rows == 6


def test_results_compare_and_the_report_has_a_heat_map(run: Path) -> None:
    assert len(read_measurements(run / "results.jsonl")) == 5
    page = (run / "report.html").read_text()
    assert "heatmap" in page and "Predicted and measured" in page and "on the fleet" in page


def test_what_is_done_is_not_done_again(run: Path, tiny_models: Path, edgec_here: Run, tmp_path: Path) -> None:
    """But for what failed, which is tried again."""
    ended = [file for file in (run / "results").iterdir() if '"status": "failed"' not in file.read_text()]
    before = {file: file.stat().st_mtime_ns for file in ended}
    assert len(before) == 5
    done = edgec_here("matrix", run.parent / "matrix.toml", "-o", run, "--json")
    assert {file: file.stat().st_mtime_ns for file in ended} == before
    assert len(json.loads(done.stdout)) == 6


def test_a_folder_with_other_things_is_left_alone(tiny_models: Path, edgec: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    done = edgec("matrix", _file(tmp_path, tiny_models, ["tflite:int8"]), "-o", tmp_path / "out")
    assert_refused(done, 2, "other things")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\n\n  colour = 3\n", ("'colour'", "line 5, column 3")),
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\n[workload]\nrounds = 3\nround = 1\n",
         ("'round'", "[workload]", "line 6, column 1")),
        ("models = ['colour']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\n\ncolour = 3\n",
         ("'colour'", "line 5, column 1")),
        ("models = []\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\n", ("models", "at least one")),
        ("models = ['m', 'm']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\n", ("'m' twice", "line 1")),
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local'\n", ("not TOML", "end of document")),
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\nverify = 1\n", ("true or false", "line 4")),
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\nsequence_length = 0\n", ("above 0", "line 4")),
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\n[workload]\nrounds = 0\n", ("rounds", "at least 1")),
        ("models = ['m']\nrecipes = ['gguf:Q8_0']\ndevices = ['local']\nworkload = 4\n", ("workload is a table",)),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_says_where(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "matrix.toml").write_text(text)
    with pytest.raises(UnusableInput) as refused:
        read_matrix(tmp_path / "matrix.toml")
    for word in words:
        assert word in str(refused.value)


def test_an_unknown_device_or_recipe_is_refused_before_any_work(tiny_models: Path, edgec: Run, tmp_path: Path) -> None:
    file = _file(tmp_path, tiny_models, ["tflite:int8"])
    file.write_text(file.read_text().replace('"local"', '"telnet://pi"'))
    assert_refused(edgec("matrix", file, "-o", tmp_path / "out"), 2, "telnet", "local, ssh")
    file = _file(tmp_path, tiny_models, ["tflite:int3"])
    assert_refused(edgec("matrix", file, "-o", tmp_path / "out"), 2, "int3")
    assert not (tmp_path / "out").exists()


def test_results_read_back_as_they_were_written() -> None:
    result = Result(Cell("m", "gguf:Q8_0", "local"), "failed", "why", seconds=1.5)
    assert from_text(to_text(result), "r") == result
    with pytest.raises(UnusableInput, match="damaged"):
        from_text("{", "r")


def _work(tiny_models: Path, recipes: list[str]) -> Work:
    workload = Workload(prompt_tokens=8, generated_tokens=4, sequence_length=32, rounds=3, repetitions=3)
    orders = []
    for name in ("llama", "bert"):
        model = edgec.open_model(str(tiny_models / name))
        for recipe in recipes:
            build = BuildOrder(
                str(tiny_models / name),
                digest_model(model),
                recipe,
                Shapes(sequence_length=32),
                QuantizationOptions(),
                False,
                (),
            )
            orders.append(MeasureOrder(Cell(str(tiny_models / name), recipe, "local"), build, workload))
    return Work(tuple(orders), {str(tiny_models / name): 1_000_000 for name in ("llama", "bert")})


def test_a_worker_that_is_killed_loses_nothing_and_repeats_nothing(tiny_models: Path, tmp_path: Path) -> None:
    work = _work(tiny_models, ["tflite:int8", "gguf:Q8_0"])
    store = tmp_path / "store"
    store.mkdir()
    with cluster(2, tmp_path) as (address, workers):
        seen: list[int] = []

        def tell(title: str, done: int, total: int) -> None:
            seen.append(done)
            if done >= 1 and workers[0].poll() is None:
                workers[0].send_signal(signal.SIGKILL)

        results = run_on_cluster(work, str(store), address, tell)
        said = lines_of(workers)
    assert workers[0].wait(10) == -signal.SIGKILL and min(seen) < 4
    assert [result.status for result in results] == ["measured"] * 4, [result.reason for result in results]
    # What was finished is in the store, and no worker did it a second time.
    done = [line for line in said if line.startswith(("built ", "measured "))]
    assert len(set(done)) == len(done) and len([line for line in done if line.startswith("measured ")]) in (3, 4)
    assert len(list((store / "results").iterdir())) == 4 and len(list((store / "builds").iterdir())) == 4
    assert not list(store.rglob("*.part"))


def test_a_cell_whose_result_is_there_is_not_measured_again(tiny_models: Path, tmp_path: Path) -> None:
    order = _work(tiny_models, ["tflite:int8"]).orders[0]
    built = build_one(order.build, str(tmp_path))
    assert built.status == "built"
    key = measure_one(order, built, str(tmp_path))
    before = (tmp_path / key).stat().st_mtime_ns
    assert build_one(order.build, str(tmp_path)) == built and measure_one(order, built, str(tmp_path)) == key
    assert (tmp_path / key).stat().st_mtime_ns == before
    other = replace(order, workload=replace(order.workload, rounds=4))
    assert result_key(other) != key


@pytest.mark.parametrize(
    ("word", "device", "measured"),
    [("invalid", "local", True), ("suspect", "local", False), ("invalid", "qemu:x", False)],
)
def test_what_cannot_be_believed_is_measured_again_where_that_is_asked_for(
    word: str, device: str, measured: bool, tiny_models: Path, tmp_path: Path
) -> None:
    """An emulated board's measurement never can be, and stays."""
    order = _work(tiny_models, ["tflite:int8"]).orders[0]
    key, built = result_key(order), build_one(order.build, str(tmp_path))
    measure_one(order, built, str(tmp_path))
    told = json.loads((tmp_path / key).read_text())
    told["measurement"]["verdict"]["word"], told["measurement"]["device"] = word, device
    (tmp_path / key).write_text(json.dumps(told))
    done: list[str] = []
    assert measure_one(order, built, str(tmp_path), done.append) == key and not done
    assert measure_one(replace(order, again=True), built, str(tmp_path), done.append) == key
    assert bool(done) is measured


def test_a_model_that_is_another_one_elsewhere_fails_its_cells(tiny_models: Path, tmp_path: Path) -> None:
    order = _work(tiny_models, ["tflite:int8"]).orders[0]
    built = build_one(replace(order.build, digest="0" * 64), str(tmp_path))
    assert built.status == "failed" and "another model" in built.reason


def test_a_device_that_nobody_offers_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    work = _work(tiny_models, ["tflite:int8"])
    elsewhere = Work(
        tuple(replace(each, cell=replace(each.cell, device="ssh://pi")) for each in work.orders), work.memory_bytes
    )
    with (
        cluster(1, tmp_path) as (address, _),
        pytest.raises(UnusableInput, match="No worker offers the device ssh://pi"),
    ):
        run_on_cluster(elsewhere, str(tmp_path), address, lambda *told: None)


def test_a_build_that_fits_no_worker_is_refused(tiny_models: Path, tmp_path: Path) -> None:
    work = replace(
        _work(tiny_models, ["tflite:int8"]),
        memory_bytes={str(tiny_models / name): 9 << 30 for name in ("llama", "bert")},
    )
    with cluster(1, tmp_path) as (address, _), pytest.raises(UnusableInput, match="no worker has more than 8"):
        run_on_cluster(work, str(tmp_path), address, lambda *told: None)


def test_no_scheduler_is_a_sentence(tiny_models: Path, edgec: Run, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    file = _file(tmp_path, tiny_models, ["tflite:int8"])
    assert_refused(
        edgec("matrix", file, "-o", tmp_path / "out", "--cluster", address), 2, "no cluster", "dask scheduler"
    )
    assert_refused(edgec("worker", "tcp://127.0.0.1:1", "--offer", "telnet:x"), 2, "telnet")
    assert_refused(edgec("worker", address, "--memory", "much"), 2, "no number of bytes")
