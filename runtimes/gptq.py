"""GPTQ checkpoints in torch: the codes are unpacked to float32 and transformers runs the model.

The kernels that run such checkpoints at int4 speed need a GPU; here the numbers are what counts, not the speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compiler.errors import UnusableInput
from compiler.inputs.gptq import import_gptq
from compiler.model import read_model
from compiler.package import Package
from compiler.pretrained import load_pretrained
from runtimes.session import GenerationSession
from runtimes.text import HuggingFaceText


def open_session(package: Package, threads: int, context_length: int) -> GenerationSession:
    """A session on the package's folder."""
    return GptqSession(package, threads, context_length)


class GptqSession:
    """A decoder in torch, weights dequantized while it is opened."""

    def __init__(self, package: Package, threads: int, context_length: int) -> None:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory(prefix="edgec-gptq-") as temporary:
            folder = Path(temporary) / package.model.name.rpartition("/")[2]
            folder.mkdir()
            try:
                import_gptq(str(package.folder), str(folder))
                # What is held to a model is held to it too: sizes, types, and that nothing of it runs.
                read_model(folder, package.model.name, task=package.model.task)
                self._model = load_pretrained(folder, package.model.task)
                self.text = HuggingFaceText(folder)
            except (OSError, ValueError, KeyError) as error:
                raise UnusableInput(
                    f"torch cannot load {package.title}: its weights do not fit its config.json. Build it again."
                ) from error
        self.vocabulary = int(self._model.config.vocab_size)
        self.context_length = context_length
        self._cache: Any = None

    def _run(self, token_ids: Sequence[int], cache: Any) -> NDArray[np.float32]:
        with torch.inference_mode():
            answer = self._model(torch.tensor([list(token_ids)]), past_key_values=cache, use_cache=True)
        self._cache = answer.past_key_values
        return np.asarray(answer.logits[0].float().numpy())

    def reset(self) -> None:
        self._cache = None

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._run(token_ids, self._cache)[-1]

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return self._run(token_ids, None)

    def close(self) -> None:
        del self._model
