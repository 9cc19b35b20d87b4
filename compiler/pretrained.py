"""Models as transformers loads them, and an encoder as one function from tensors to tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import UnusableInput
from compiler.formats.json_file import read_object
from compiler.sentence import OUTPUT, read_sentence_vector
from compiler.task import VECTORS, find_task


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes:
        module: a torch module in eval mode, fp32; takes the inputs positionally in `input_names` order and returns a
            tuple in `output_names` order.
        input_names: `input_ids`, `attention_mask` and, where the model has segments, `token_type_ids`; int64 (batch,
            sequence). Or `pixel_values`, float32 (batch, channels, height, width).
        output_names: those of its task, and the sentence vector where the model makes one.
        vocabulary: token ids that inputs may have; 0 for images.
        image_shape: (channels, height, width) for images, else None.
    """

    module: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    vocabulary: int
    image_shape: tuple[int, int, int] | None


def from_pretrained(folder: Path, task: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """What transformers makes of a folder, and what it says of the names of its tensors; no code of the model runs.

    Raises:
        UnusableInput: transformers has no class for it, or cannot load it.
    """
    import torch
    import transformers

    try:
        model, info = getattr(transformers, find_task(task).auto_class).from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        known = read_object(folder / "config.json").get("model_type")
        raise UnusableInput(
            f"transformers cannot load {folder.name} for {task}: it has no such class for model_type {known!r}, or "
            "config.json has a setting that it does not take. Compare config.json with the model's card, or name another "
            "--task."
        ) from error
    return model, info


def load_pretrained(folder: Path, task: str, **options: Any) -> Any:
    """The model of a Hugging Face folder, fp32, in eval mode; only safetensors are read and no code of the model runs.

    Args:
        folder: the Hugging Face folder.
        task: decides the class.
        options: more for `from_pretrained`.

    Raises:
        UnusableInput: transformers cannot load it, or would fill weights that it lacks with random numbers.
    """
    model, info = from_pretrained(folder, task, **options)
    missing = [name for name in info["missing_keys"] if "pooler" not in name and "position_ids" not in name]
    if missing:
        raise UnusableInput(
            f"{folder.name} lacks the weights {sorted(missing)[0]} that {task} needs, and they would be random. Choose the "
            "task it was trained for with --task, or download it again."
        )
    return model.eval()


def load_encoder(folder: Path, task: str, attention: str = "eager") -> Encoder:
    """Load the model with transformers in fp32.

    Args:
        folder: the Hugging Face folder; only safetensors are read.
        task: one of the kind `encoding`.
        attention: name of the attention implementation, `eager` for plain operators.

    Raises:
        UnusableInput: transformers cannot load it.
    """
    import torch

    from compiler.image_processor import picture_size
    from compiler.networks.sentence import load_sentence_head

    model = load_pretrained(folder, task, attn_implementation=attention)
    config = model.config
    if find_task(task).takes == "image":
        height, width = picture_size(folder, getattr(config, "image_size", None))
        names: tuple[str, ...] = ("pixel_values",)
        image_shape = (config.num_channels, height, width)
    else:
        segments = getattr(config, "type_vocab_size", 0) > 1
        names = ("input_ids", "attention_mask") + (("token_type_ids",) if segments else ())
        image_shape = None
    outputs = find_task(task).outputs
    vector = read_sentence_vector(folder, config.hidden_size) if task == VECTORS else None
    sentence = None if vector is None else load_sentence_head(folder, vector)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            if sentence is not None:
                self.sentence = sentence

        def forward(self, *inputs: Any) -> Any:
            result = self.model(**dict(zip(names, inputs, strict=True)), return_dict=True)
            found = tuple(getattr(result, name) for name in outputs)
            return found if sentence is None else (*found, self.sentence(found[0], inputs[1]))

    # LiteRT's converter writes this name into the names of tensors: it stays, wherever the class moves.
    Wrapped.__module__, Wrapped.__qualname__ = "compiler.encoder_wrap", "load_encoder.<locals>.Wrapped"
    vocabulary = 0 if image_shape else int(config.vocab_size)
    named = outputs + ((OUTPUT,) if sentence is not None else ())
    return Encoder(Wrapped().eval(), names, named, vocabulary, image_shape)


def example_inputs(encoder: Encoder, batch: int, sequence: int) -> tuple[Any, ...]:
    """Inputs of the right shapes for tracing, seeded; the last fifth of a second row is padding."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if encoder.image_shape:
        return (torch.randn(batch, *encoder.image_shape, generator=generator),)
    ids = torch.randint(0, encoder.vocabulary, (batch, sequence), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, sequence - sequence // 5 :] = 0
    return (ids, mask, torch.zeros_like(ids))[: len(encoder.input_names)]
