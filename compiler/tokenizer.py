"""The tokenizer of a Model: what its own files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object

# What every vocabulary has.
_LETTER = "a"


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer as transformers' object; its `tokenizer.json`, where it has one, is taken as it is.

    `AutoTokenizer` of transformers 5 keeps only the vocabulary and the merges of that file for many model types and puts
    rules of its own around them, which split spaces another way than the file and the runtimes do (Llama, Mistral).

    Raises:
        UnusableInput: there is none, or transformers cannot load it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    own = (folder / "tokenizer.json").is_file()
    loader: Any = PreTrainedTokenizerFast if own else AutoTokenizer
    try:
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UnusableInput(
            f"{folder.name} has no tokenizer that transformers can load: tokenizer.json or tokenizer_config.json is missing, "
            "damaged, or of a kind that it does not know. Compare them with the model's repository."
        ) from error


def start_of_text_ids(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before a text by itself: mostly one, of the begin token, or none."""
    whole = [int(token) for token in tokenizer(_LETTER)["input_ids"]]
    own = [int(token) for token in tokenizer(_LETTER, add_special_tokens=False)["input_ids"]]
    places = [place for place in range(len(whole)) if own and whole[place : place + len(own)] == own]
    if places:
        return whole[: places[0]]
    return [int(token) for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id][:1]


def end_of_text_ids(folder: Path) -> set[int]:
    """The ids at which the Hugging Face model ends a text: generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = read_object(path).get("eos_token_id") if path.is_file() else None
        ids = value if isinstance(value, list) else [value]
        if value is not None and not all(type(each) is int for each in ids):
            raise UnusableInput(f"{name} of {folder.name} has eos_token_id = {value!r:.60}, which is no token's id.")
        if value is not None:
            return set(ids)
    return set()
