"""Pick, build and check a language model for a Raspberry Pi 5.

    python examples/raspberry_pi_llm.py MODEL -o OUT

MODEL is a Hugging Face folder, a hub id or a .gguf file. Of a few recipes the most exact one is taken whose weights leave
room on the board and whose bound by memory bandwidth is at least the speed that is asked for. The package is built here,
held to the fp32 model, and OUT/... can then be copied to the board and run there with llama.cpp. The speed printed is an
upper bound that follows from the board's measured bandwidth; nothing here ran on a board.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edgec

# Raspberry Pi 5: 17.1 GB/s on paper (LPDDR4X-4267, 32 bit), about 11.4 GB/s sustained in language model decoding.
READ_BYTES_PER_S = 11.4e9
FREE_SHARE = 0.6  # of the board's memory; the rest is for the system and the cache of keys and values
BEST_FIRST = ("gguf:Q8_0", "gguf:Q6_K", "gguf:Q5_K_M", "gguf:Q4_K_M", "gguf:Q5_0", "gguf:Q4_0")


def pick(model: edgec.Model, memory_gb: float, tokens_per_s: float) -> str:
    """The most exact recipe that fits the board and its bandwidth."""
    gguf = next(each for each in edgec.inspect(model).targets if each.target == "gguf")
    sizes = dict(zip(gguf.schemes, gguf.nbytes, strict=True))
    for recipe in BEST_FIRST:
        scheme = recipe.removeprefix("gguf:")
        nbytes, whole = sizes.get(scheme), scheme not in gguf.falling_back
        if nbytes is None:
            continue
        fits = nbytes < FREE_SHARE * memory_gb * 1e9 and READ_BYTES_PER_S / nbytes >= tokens_per_s
        print(f"  {recipe:12} {nbytes / 1e6:8.1f} MB, at most {READ_BYTES_PER_S / nbytes:6.1f} tok/s", end="")
        print("" if whole else ", its blocks do not divide the rows")
        if fits and whole:
            return recipe
    raise SystemExit(f"Nothing fits {memory_gb:g} GB at {tokens_per_s:g} tok/s. Take a smaller model.")


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--memory-gb", type=float, default=8)
    parser.add_argument("--tokens-per-s", type=float, default=10)
    arguments = parser.parse_args()
    model = edgec.open_model(arguments.model)
    print(f"{model.name}: {model.parameters / 1e6:.0f}M parameters")
    recipe = pick(model, arguments.memory_gb, arguments.tokens_per_s)
    print(f"building {recipe}")
    package = edgec.build(model, [recipe], arguments.out, executor=edgec.LocalExecutor(jobs=2)).packages[0]
    found = edgec.verify([package])
    edgec.require_passed([package], found)
    read = package.lowered.weights.decode_read_bytes or package.nbytes
    figures = found[0].figures
    print(f"verified: mean KL {figures['mean_kl']:.2g}, same top-1 {figures['same_top1']:.1%}")
    print(
        f"a Raspberry Pi 5 can decode at most {READ_BYTES_PER_S / read:.0f} tok/s (bound by its memory, not measured)"
    )
    print(f"copy {package.folder} to the board; there: llama-cli -m {package.artifact.name} -t 4 -cnv")


if __name__ == "__main__":
    try:
        main()
    except edgec.EdgecError as error:
        raise SystemExit(f"edgec: {error}") from error
