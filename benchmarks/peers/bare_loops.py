"""Bare loops over llama_cpp and onnxruntime_genai: what a user would write to time them, without edgec.

Run as `python -P -m benchmarks.peers.bare_loops llamacpp|ortgenai MODEL THREADS PROMPT GENERATED ROUNDS`; prints JSON.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def llamacpp(path: str, threads: int, prompt: int, generated: int, rounds: int) -> list[tuple[float, float]]:
    """(prefill, decode) tokens per second of each round, with llama-cpp-python's own Llama object."""
    import llama_cpp

    llama = llama_cpp.Llama(path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    ids = [int(token) for token in np.random.default_rng(0).integers(5, llama.n_vocab() // 2, prompt)]
    figures = []
    for _ in range(rounds + 1):
        llama.reset()
        started = time.perf_counter()
        llama.eval(ids)
        token = int(_last(llama).argmax())
        first = time.perf_counter()
        for _ in range(generated - 1):
            llama.eval([token])
            token = int(_last(llama).argmax())
        ended = time.perf_counter()
        figures.append((prompt / (first - started), (generated - 1) / (ended - first)))
    return figures[1:]


def _last(llama: object) -> np.ndarray:
    import llama_cpp

    logits = llama_cpp.llama_get_logits_ith(llama.ctx, -1)  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(logits, (llama.n_vocab(),))  # type: ignore[attr-defined]


def ortgenai(path: str, threads: int, prompt: int, generated: int, rounds: int) -> list[tuple[float, float]]:
    """The same with GenAI's generate_next_token."""
    import onnxruntime_genai as og

    config = og.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    vocabulary = json.loads((__import__("pathlib").Path(path) / "genai_config.json").read_text())["model"]["vocab_size"]
    ids = np.random.default_rng(0).integers(5, vocabulary // 2, prompt).astype(np.int32)
    figures = []
    for _ in range(rounds + 1):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=2048, min_length=2048, do_sample=False)
        generator = og.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(generated - 1):
            generator.generate_next_token()
        ended = time.perf_counter()
        figures.append((prompt / (first - started), (generated - 1) / (ended - first)))
    return figures[1:]


if __name__ == "__main__":
    loop = {"llamacpp": llamacpp, "ortgenai": ortgenai}[sys.argv[1]]
    print(json.dumps(loop(sys.argv[2], *(int(argument) for argument in sys.argv[3:]))))
