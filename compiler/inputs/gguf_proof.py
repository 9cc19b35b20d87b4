"""What was imported from a .gguf file, held to that file in llama.cpp before it becomes the Reference.

Both read the project's own text. Their tokens must be equal, and their logits as near as llama.cpp's own arithmetic allows.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    from compiler.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = [token for passage in corpus.PASSAGES for token in tokenizer.encode(passage, add_special_tokens=False)]
    ids = ids[:_TOKENS]
    llama = _open(file)
    try:
        _compare_tokens(file, tokenizer, llama)
        observed = _logits(llama, ids)
    finally:
        llama.close()
    expected = _reference(folder, ids)
    kl, most = _divergence(expected, observed), _MOST_KL[quantized]
    if quantized and not kl <= most:
        # Rounding of activations costs some models more; with the file's weights as floats there is none.
        kl, most = _divergence(expected, _logits_of_floats(file, folder.parent, ids)), _MOST_KL[False]
    if not kl <= most:
        raise UnusableInput(
            f"What transformers makes of {file.name} is another model than the file is in llama.cpp: mean KL {kl:.3g}, at "
            f"most {most:g} is arithmetic. Use the original Hugging Face model in place of the GGUF file."
        )


def _open(file: Path) -> Any:
    import llama_cpp

    try:
        return llama_cpp.Llama(str(file), n_ctx=_TOKENS, n_batch=_TOKENS, logits_all=True, verbose=False)
    except ValueError as error:
        raise UnusableInput(
            f"llama.cpp cannot load {file.name}, so that nothing can be held to it. The file is damaged, or of an "
            "architecture that this llama.cpp does not know."
        ) from error


def _logits(llama: Any, ids: list[int]) -> NDArray[np.float32]:
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def _logits_of_floats(file: Path, beside: Path, ids: list[int]) -> NDArray[np.float32]:
    """The logits of the file with its codes made float32 by llama.cpp's own quantizer."""
    import llama_cpp

    with tempfile.TemporaryDirectory(dir=beside, prefix="floats-") as temporary:
        floats = Path(temporary) / "floats.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
        if llama_cpp.llama_model_quantize(str(file).encode(), str(floats).encode(), ctypes.byref(params)):
            raise UnusableInput(
                f"llama.cpp cannot make floats of the codes in {file.name}, so that nothing can be held to it. Use the "
                "original Hugging Face model in place of the GGUF file."
            )
        llama = _open(floats)
        try:
            return _logits(llama, ids)
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


def _reference(folder: Path, ids: list[int]) -> Any:
    """Logits of the imported model in torch, float64 (tokens, vocabulary)."""
    import torch

    from compiler.pretrained import load_pretrained

    with torch.inference_mode():
        model = load_pretrained(folder, "text-generation")
        return model(torch.tensor([ids]), use_cache=False).logits[0].double()


def _divergence(reference: Any, observed: NDArray[np.float32]) -> float:
    """Mean KL(reference || observed) in nats."""
    import torch

    other = torch.from_numpy(observed[:, : reference.shape[-1]]).double()
    divergence = torch.nn.functional.kl_div(
        other.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
    )
    return float(divergence.sum(-1).mean())
