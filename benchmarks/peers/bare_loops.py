"""Bare loops over llama_cpp and onnxruntime_genai: what a user would write to time them, without edgec.

Run as `python -P -m benchmarks.peers.bare_loops llamacpp|ortgenai MODEL THREADS PROMPT GENERATED`. For each line on standard
input it runs one round and prints `[prefill tokens per second, decode tokens per second]`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Loop = Callable[[], tuple[float, float]]


def llamacpp(path: str, threads: int, prompt: int, generated: int) -> Loop:
    """A round with llama-cpp-python's own Llama object."""
    import llama_cpp

    llama: Any = llama_cpp.Llama(path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    ids = _prompt(llama.n_vocab(), prompt)

    def last() -> int:
        logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (llama.n_vocab(),)).argmax())

    def loop() -> tuple[float, float]:
        llama.reset()
        started = time.perf_counter()
        llama.eval(ids)
        token = last()
        first = time.perf_counter()
        for _ in range(generated - 1):
            llama.eval([token])
            token = last()
        return prompt / (first - started), (generated - 1) / (time.perf_counter() - first)

    return loop


def ortgenai(path: str, threads: int, prompt: int, generated: int) -> Loop:
    """A round with GenAI's generate_next_token; its generator is made before the clock starts."""
    import onnxruntime_genai as og

    config = og.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    vocabulary = json.loads((Path(path) / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]
    ids = np.asarray(_prompt(vocabulary, prompt), np.int32)

    def loop() -> tuple[float, float]:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=2048, min_length=2048, do_sample=False)
        generator = og.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(generated - 1):
            generator.generate_next_token()
        return prompt / (first - started), (generated - 1) / (time.perf_counter() - first)

    return loop


def _prompt(vocabulary: int, tokens: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(5, vocabulary // 2, tokens)]


if __name__ == "__main__":
    make = {"llamacpp": llamacpp, "ortgenai": ortgenai}[sys.argv[1]]
    run = make(sys.argv[2], *(int(argument) for argument in sys.argv[3:]))
    run()
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)
