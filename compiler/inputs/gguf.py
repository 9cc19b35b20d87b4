"""A .gguf file as a Hugging Face folder, by dequantizing. Runs in a child process.

transformers reads the tensors and the tokenizer (`from_pretrained(gguf_file=...)`). What it leaves to be done: the
marks of quantization that make `save_pretrained` refuse, a bogus `tokenizer.model` (a copy of the GGUF file), the
lineage that the GGUF metadata tells (licence, base models), the keys that it leaves out (compiler/inputs/gguf_keys.py), and
the pre-tokenizer: transformers gives every BPE vocabulary GPT-2's, whatever `tokenizer.ggml.pre` says, and then splits digits
of other scripts another way. What came of it is held to the file in llama.cpp (compiler/inputs/gguf_proof.py).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.inputs.gguf_keys import check_keys, check_tensors, number_of, restore_config, text_of
from compiler.inputs.gguf_proof import prove_import


def import_gguf(file: str, out: str) -> None:
    """Write `config.json`, `model.safetensors` (fp32), the tokenizer and a model card into `out`.

    Raises:
        UnusableInput: the file is no GGUF, of an architecture that transformers does not read, or becomes another model.
    """
    import gguf
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers import modeling_gguf_pytorch_utils as reading

    path, folder = Path(file), Path(out)
    # transformers reads the file four more times, half a minute each for a vocabulary like Gemma's.
    gguf.GGUFReader = cache(gguf.GGUFReader)  # type: ignore[misc, assignment]
    # Which of the file's tensors transformers takes for which weight, it tells nobody.
    mapped: dict[str, str] = {}
    find_map: Any = reading.get_gguf_hf_weights_map

    def told(*args: Any, **kwargs: Any) -> Any:
        found = find_map(*args, **kwargs)
        mapped.update(found)
        return found

    reading.get_gguf_hf_weights_map = told
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:
        raise UnusableInput(f"{path.name} is not a usable GGUF file: the gguf package cannot read it.") from error
    fields = reader.fields
    check_keys(fields, path.name)
    given: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path.parent, **given)
        rope = {each.name: each.data for each in reader.tensors if each.name.startswith("rope_f")}
        restore_config(config, fields, rope, path.name)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, config=config, output_loading_info=True, **given
        )
    except (ValueError, NotImplementedError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise UnusableInput(
            f"transformers cannot import {path.name}, of the architecture {text_of(fields, 'general.architecture')!r}: it "
            "does "
            "not read such files, or this one lacks what it needs. Use the original Hugging Face model in its place."
        ) from error
    model, info = loaded
    check_tensors((each.name for each in reader.tensors), mapped, path.name)
    if lacking := sorted(info["missing_keys"]):
        raise UnusableInput(
            f"{path.name} lacks the tensor that transformers calls {lacking[0]}. The file is not whole."
        )
    _restore_pre_tokenizer(tokenizer, fields, path.name)
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _restore_ends(model, fields)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "README.md").write_text(_model_card(fields), encoding="utf-8")
    quantized = any(each.tensor_type.name not in ("F32", "F16", "BF16") for each in reader.tensors)
    del model, loaded, reader
    prove_import(path, folder, quantized)


def _restore_ends(model: Any, fields: dict[str, Any]) -> None:
    """All tokens that end a text: the file may name an end of turn beside the end of text."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    ends = sorted({int(number_of(fields, key)) for key in keys if key in fields})
    if len(ends) > 1:
        model.config.eos_token_id = ends
        model.generation_config.eos_token_id = ends


# Values of `tokenizer.ggml.pre` (llama.cpp, llama_vocab::impl::load) by what their regular expressions do.
_PRE_SPLITS_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_PRE_AS_IMPORTED = ("gpt-2", "default", "llama-bpe", "llama3", "llama-v3", "qwen2")


def _restore_pre_tokenizer(tokenizer: Any, fields: dict[str, Any], file: str) -> None:
    if text_of(fields, "tokenizer.ggml.model") == "llama":
        _restore_sentencepiece(tokenizer, fields)
    if text_of(fields, "tokenizer.ggml.model") != "gpt2":
        return
    pre = text_of(fields, "tokenizer.ggml.pre") or "default"
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


def _restore_sentencepiece(tokenizer: Any, fields: dict[str, Any]) -> None:
    """Spaces as SentencePiece treats them: each is a piece's own sign, one more stands before a text; nothing is split "
    "before."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    prefix = "tokenizer.ggml.add_space_prefix" not in fields or bool(
        number_of(fields, "tokenizer.ggml.add_space_prefix")
    )
    backend = tokenizer.backend_tokenizer
    steps = [normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps] if prefix else steps)
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _model_card(fields: dict[str, Any]) -> str:
    lines = ["---"]
    if licence := text_of(fields, "general.license"):
        lines.append(f"license: {licence}")
    count = int(fields["general.base_model.count"].contents()) if "general.base_model.count" in fields else 0
    bases = [text_of(fields, f"general.base_model.{index}.repo_url") for index in range(count)]
    if known := [base.rstrip("/").split("huggingface.co/")[-1] for base in bases if base]:
        lines += ["base_model:", *(f"- {base}" for base in known)]
    return "\n".join([*lines, "---", "", "Imported from a GGUF file by dequantizing its tensors to fp32.", ""])
