"""A .gguf file as a Hugging Face folder, by dequantizing. Runs in a child process.

transformers reads the tensors and the tokenizer (`from_pretrained(gguf_file=...)`). What it leaves to be done: the
marks of quantization that make `save_pretrained` refuse, a bogus `tokenizer.model` (a copy of the GGUF file), the
lineage that the GGUF metadata tells (licence, base models), and the pre-tokenizer: transformers gives every BPE
vocabulary GPT-2's, whatever `tokenizer.ggml.pre` says, and then splits digits of other scripts another way.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput


def import_gguf(file: str, out: str) -> None:
    """Write `config.json`, `model.safetensors` (fp32), the tokenizer and a model card into `out`.

    Raises:
        UnusableInput: the file is no GGUF, or of an architecture that transformers does not read.
    """
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(file)
    # transformers reads the file three more times, half a minute each for a vocabulary like Gemma's.
    gguf.GGUFReader = cache(gguf.GGUFReader)  # type: ignore[misc, assignment]
    try:
        fields = gguf.GGUFReader(file).fields
    except Exception as error:
        raise UnusableInput(f"{path.name} is not a usable GGUF file: {error}.") from error
    try:
        given: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, **given)
    except (ValueError, NotImplementedError, KeyError) as error:
        raise UnusableInput(f"transformers cannot import {path.name}: {error}.") from error
    _restore_pre_tokenizer(tokenizer, fields, path.name)
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    folder = Path(out)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "README.md").write_text(_model_card(fields), encoding="utf-8")


# Values of `tokenizer.ggml.pre` (llama.cpp, llama_vocab::impl::load) by what their regular expressions do.
_PRE_SPLITS_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_PRE_AS_IMPORTED = ("gpt-2", "default", "llama-bpe", "llama3", "llama-v3", "qwen2")


def _restore_pre_tokenizer(tokenizer: Any, fields: dict[str, Any], file: str) -> None:
    if _text(fields, "tokenizer.ggml.model") != "gpt2":
        return
    pre = _text(fields, "tokenizer.ggml.pre") or "default"
    if pre in _PRE_SPLITS_DIGITS:
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre not in _PRE_AS_IMPORTED:
        raise UnusableInput(
            f"{file} uses the pre-tokenizer {pre!r}, which cannot be restored from a GGUF file: its text would be split "
            "differently. Use the original Hugging Face model in place of the GGUF file."
        )


def _text(fields: dict[str, Any], key: str) -> str | None:
    return str(fields[key].contents()) if key in fields else None


def _model_card(fields: dict[str, Any]) -> str:
    lines = ["---"]
    if licence := _text(fields, "general.license"):
        lines.append(f"license: {licence}")
    count = int(fields["general.base_model.count"].contents()) if "general.base_model.count" in fields else 0
    bases = [_text(fields, f"general.base_model.{index}.repo_url") for index in range(count)]
    if known := [base.rstrip("/").split("huggingface.co/")[-1] for base in bases if base]:
        lines += ["base_model:", *(f"- {base}" for base in known)]
    return "\n".join([*lines, "---", "", "Imported from a GGUF file by dequantizing its tensors to fp32.", ""])
