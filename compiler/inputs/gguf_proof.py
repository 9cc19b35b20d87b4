"""What was imported from a .gguf file, held to that file in llama.cpp before it becomes the Reference.

Both read the project's own text. Their tokens must be equal, and their logits as near as llama.cpp's own arithmetic allows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compiler import corpus
from compiler.errors import UnusableInput

_TOKENS = 96
# llama.cpp rounds activations to 8 bits before codes, to the weights' own type before float16 and bfloat16.
_MOST_KL = {True: 0.05, False: 0.005}


def prove_import(file: Path, folder: Path, quantized: bool) -> None:
    """Compare tokens and logits of the imported folder with those of llama.cpp.

    Args:
        file: the .gguf file.
        folder: what was made of it.
        quantized: whether the file has tensors of codes.

    Raises:
        UnusableInput: they differ, or llama.cpp cannot load the file.
    """
    import llama_cpp

    from compiler.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    try:
        llama: Any = llama_cpp.Llama(str(file), n_ctx=_TOKENS, n_batch=_TOKENS, logits_all=True, verbose=False)
    except ValueError as error:
        raise UnusableInput(
            f"llama.cpp cannot load {file.name}, so that nothing can be held to it. The file is damaged, or of an "
            "architecture that this llama.cpp does not know."
        ) from error
    try:
        _compare_tokens(file, tokenizer, llama)
        ids = [token for passage in corpus.PASSAGES for token in tokenizer.encode(passage, add_special_tokens=False)]
        ids = ids[:_TOKENS]
        llama.eval(ids)
        _compare_logits(file, folder, ids, np.array(llama.scores[: len(ids)]), _MOST_KL[quantized])
    finally:
        llama.close()


def _compare_tokens(file: Path, tokenizer: Any, llama: Any) -> None:
    for string in corpus.nasty_strings(tokenizer.all_special_tokens):
        ours = tokenizer.encode(string, add_special_tokens=False)
        theirs = llama.tokenize(string.encode("utf-8"), add_bos=False, special=True)
        if list(ours) != list(theirs):
            raise UnusableInput(
                f"The tokenizer that transformers makes of {file.name} is another one than llama.cpp's: {string[:40]!r} is "
                f"{list(ours)[:8]} and not {list(theirs)[:8]}. Use the original Hugging Face model in place of the GGUF file."
            )


def _compare_logits(file: Path, folder: Path, ids: list[int], observed: Any, most: float) -> None:
    import torch

    from compiler.pretrained import load_pretrained

    with torch.inference_mode():
        model = load_pretrained(folder, "text-generation")
        reference = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    other = torch.from_numpy(observed[:, : reference.shape[-1]]).double()
    divergence = torch.nn.functional.kl_div(
        other.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    )
    kl = float(divergence.sum(-1).mean())
    if not kl <= most:
        raise UnusableInput(
            f"What transformers makes of {file.name} is another model than the file is in llama.cpp: mean KL {kl:.3g}, at "
            f"most {most:g} is arithmetic. Use the original Hugging Face model in place of the GGUF file."
        )
