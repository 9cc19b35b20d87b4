"""Keys of the vocabulary that llama.cpp's converter leaves out, so that llama.cpp would guess them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.tokenizer import end_of_text_ids, load_tokenizer, start_of_text_ids

_BEGIN = "tokenizer.ggml.add_bos_token"
# Kinds of vocabulary that llama.cpp puts a begin token before, or not, by what their file or their kind says.
_WITH_BEGIN = ("gpt2", "llama")


@contextmanager
def completed(model: Path) -> Iterator[None]:
    """Let the converter's writer, in this process, name further ends of a text, and whether a text has a begin token.

    It writes one end alone where a model has several, as ends of a turn and of a message.
    """
    from gguf import GGUFWriter

    original = GGUFWriter.write_header_to_file
    ends = sorted(end_of_text_ids(model))

    def write(self: Any, *arguments: Any, **options: Any) -> None:
        written = self.kv_data[0]
        first = written.get("tokenizer.ggml.eos_token_id")
        others = [end for end in ends if first is not None and end != first.value]
        free = [key for key in ("eot", "eom") if f"tokenizer.ggml.{key}_token_id" not in written]
        for key, end in zip(free, others, strict=False):
            self.add_uint32(f"tokenizer.ggml.{key}_token_id", end)
        kind = written.get("tokenizer.ggml.model")
        if kind is not None and kind.value in _WITH_BEGIN and _BEGIN not in written:
            self.add_bool(_BEGIN, bool(start_of_text_ids(load_tokenizer(model))))
        original(self, *arguments, **options)

    GGUFWriter.write_header_to_file = write  # type: ignore[method-assign]
    try:
        yield
    finally:
        GGUFWriter.write_header_to_file = original  # type: ignore[method-assign]
