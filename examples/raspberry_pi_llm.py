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

from compiler.build import build
from compiler.errors import EdgecError
from compiler.inputs.open import open_model
from compiler.model import Model
from compiler.package import check_files
from compiler.recipe import Recipe, parse_recipe
from compiler.scheme import estimate_weight_bytes
from compiler.target import reason_against
from runtimes.verify.verify import require_passed, verify
from targets.registry import TARGET_NAMES, load_target

# Raspberry Pi 5: 17.1 GB/s on paper (LPDDR4X-4267, 32 bit), about 11.4 GB/s sustained in language model decoding.
READ_BYTES_PER_S = 11.4e9
FREE_SHARE = 0.6  # of the board's memory; the rest is for the system and the cache of keys and values
BEST_FIRST = ("gguf:Q8_0", "gguf:Q6_K", "gguf:Q5_K_M", "gguf:Q4_K_M", "gguf:Q5_0", "gguf:Q4_0")


def weight_bytes(model: Model, recipe: Recipe) -> int:
    """Estimated bytes of the weights in the recipe's scheme."""
    return estimate_weight_bytes(recipe.scheme, model.matrix_weights, model.parameters - model.matrix_weights)


def pick(model: Model, memory_gb: float, tokens_per_s: float) -> Recipe:
    """The most exact recipe that fits the board and its bandwidth."""
    for text in BEST_FIRST:
        recipe = parse_recipe(text, TARGET_NAMES)
        block = recipe.scheme.block
        fits_rows = all(tensor.shape[-1] % block == 0 for tensor in model.tensors if len(tensor.shape) == 2)
        nbytes = weight_bytes(model, recipe)
        fits = nbytes < FREE_SHARE * memory_gb * 1e9 and READ_BYTES_PER_S / nbytes >= tokens_per_s
        print(f"  {text:12} {nbytes / 1e6:8.1f} MB, at most {READ_BYTES_PER_S / nbytes:6.1f} tok/s", end="")
        print("" if fits_rows else ", its blocks do not divide the rows")
        if fits and fits_rows and reason_against(load_target("gguf"), model, recipe) is None:
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
    model = open_model(arguments.model)
    print(f"{model.name}: {model.parameters / 1e6:.0f}M parameters")
    recipe = pick(model, arguments.memory_gb, arguments.tokens_per_s)
    print(f"building {recipe}")
    package = build(model, [recipe], load_target, arguments.out, jobs=2).packages[0]
    check_files(package)
    verdict = verify(package, model)
    require_passed([verdict], allow=())
    read = package.lowered.weights.decode_read_bytes or package.nbytes
    print(f"verified: mean KL {verdict.quality['mean_kl']:.2g}, same top-1 {verdict.quality['same_top1']:.1%}")
    print(
        f"a Raspberry Pi 5 can decode at most {READ_BYTES_PER_S / read:.0f} tok/s (bound by its memory, not measured)"
    )
    print(f"copy {package.folder} to the board; there: llama-cli -m {package.lowered.artifact} -t 4 -cnv")


if __name__ == "__main__":
    try:
        main()
    except EdgecError as error:
        raise SystemExit(f"edgec: {error}") from error
