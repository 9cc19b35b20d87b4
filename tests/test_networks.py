"""The re-authored networks compute what transformers computes, block by block, in both layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor

from compiler.errors import UnusableInput
from compiler.model import Model, read_model
from compiler.networks.configs import Part
from compiler.networks.decoder import Decoder, cache_shapes
from compiler.networks.decoder_family import decoder_sources, describe_decoder, rotary_tables
from compiler.networks.encoder import build_encoder
from compiler.networks.encoder_family import describe_encoder, encoder_sources
from compiler.networks.families import decoder_family, encoder_family
from compiler.networks.parts import Layout
from compiler.networks.weights import fill
from compiler.pretrained import load_encoder
from runtimes.kinds.encoding.reference import draw_images

LAYOUTS: tuple[Layout, ...] = ("plain", "ane")
TOLERANCE = 2e-4
LENGTH = 24


@pytest.fixture(scope="module")
def made(minilm_folder: Path, smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("networks")
    for kind in tiny.REAUTHORED_ENCODERS:
        tiny.save_encoder(kind, minilm_folder, root / kind)
    for kind in tiny.REAUTHORED_DECODERS:
        tiny.save_decoder(kind, smollm2.folder, root / kind)
    return root


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    """Within the tolerance, as a share of the largest value."""
    assert float((ours - theirs).abs().max()) < TOLERANCE * float(theirs.abs().max())


@contextmanager
def block_outputs(blocks: Any, layout: Layout) -> Iterator[list[Tensor]]:
    """What each block gives, as (B, S, C)."""
    seen: list[Tensor] = []

    def keep(module: Any, given: Any, result: Any) -> None:
        hidden = result[0] if isinstance(result, tuple) else result
        seen.append(hidden.squeeze(2).transpose(1, 2) if layout == "ane" else hidden)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", tiny.REAUTHORED_DECODERS)
def test_a_decoder_agrees_after_every_block_and_goes_on_from_its_cache(kind: str, layout: Layout, made: Path) -> None:
    assert_decoder_agrees(made / kind, layout)


# (family, what config.json says of its rotary embedding)
ROTARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("llama", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "yarn": ("qwen3", {"factor": 4.0}),
    "linear": ("gemma", {"factor": 4.0}),
    "longrope": ("phi3", {"short_factor": [1 + n / 8 for n in range(8)], "long_factor": [2.0 + n for n in range(8)]}),
    "default": ("phi3", {"partial_rotary_factor": 0.5}),
}


@pytest.mark.parametrize("scaling", ROTARIES)
def test_a_rotary_embedding_of_every_scaling_agrees(scaling: str, made: Path, tmp_path: Path) -> None:
    kind, parameters = ROTARIES[scaling]
    folder = shutil.copytree(made / kind, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    original = 256 if scaling == "longrope" else 16
    base = {"rope_theta": 10000.0, "original_max_position_embeddings": original}
    config["rope_parameters"] = {"rope_type": scaling, **base, **parameters}
    before = _cosines(folder)
    (folder / "config.json").write_text(json.dumps(config))
    after = _cosines(folder)
    assert before.shape != after.shape or float((before - after).abs().max()) > 0.1
    assert_decoder_agrees(folder, "ane")


def _cosines(folder: Path) -> Tensor:
    source = read_model(folder)
    family = decoder_family(source)
    return rotary_tables(source, family, describe_decoder(source, family, 64))[""].cos


@torch.inference_mode()
def assert_decoder_agrees(folder: Path, layout: Layout) -> None:
    source = read_model(folder)
    family = decoder_family(source)
    config = describe_decoder(source, family, 64)
    part = Part(0, config.layers, True, True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.randint(5, config.vocabulary, (1, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    expected = reference(ids, output_hidden_states=True)
    caches = [torch.zeros(shape) for shape in cache_shapes(config, part, layout)]
    networks = {}
    for length in (LENGTH, 1):
        networks[length] = Decoder(config, part, length, rotary_tables(source, family, config), layout).eval()
        fill(networks[length], source, decoder_sources(source, family, config))
    with block_outputs(networks[LENGTH].blocks, layout) as seen:
        logits, *caches = networks[LENGTH](ids[:, :LENGTH], torch.tensor([0]), *caches)
    for ours, theirs in zip(seen[:-1], expected.hidden_states[1:-1], strict=True):
        assert_near(ours, theirs[:, :LENGTH] * config.stream_scale)
    assert_near(logits, expected.logits[:, :LENGTH])
    assert_near(networks[1](ids[:, LENGTH:], torch.tensor([LENGTH]), *caches)[0], expected.logits[:, LENGTH:])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", tiny.REAUTHORED_ENCODERS)
@torch.inference_mode()
def test_an_encoder_agrees_after_every_block(kind: str, layout: Layout, made: Path) -> None:
    source = read_model(made / kind)
    family = encoder_family(source)
    config = describe_encoder(source, family)
    network = build_encoder(config, layout).eval()
    fill(network, source, encoder_sources(source, family, config))
    reference = load_encoder(made / kind, source.task, "eager")
    if config.image:
        given = {"pixel_values": torch.from_numpy(draw_images(config.image[0])[1])[None]}
    else:
        ids = torch.randint(200, 5000, (2, LENGTH), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[1, 15:] = 0
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": (ids % 2)}
    theirs = transformers_blocks(reference.module)
    with block_outputs(network.blocks, layout) as ours, block_outputs(theirs, "plain") as expected:
        outputs = network(*(given[name] for name in network.input_names))
        wanted = reference.module(*(given[name] for name in reference.input_names))
    for mine, other in zip(ours, expected, strict=True):
        assert_near(mine[:1], other[:1])
    for mine, other in zip(outputs if isinstance(outputs, tuple) else (outputs,), wanted, strict=True):
        assert_near(mine[:1], other[:1])
        real = slice(0, 15) if mine.dim() > 1 and mine.shape[1] == LENGTH else slice(None)
        assert_near(mine[-1:, real], other[-1:, real])


def transformers_blocks(module: Any) -> Any:
    """transformers' list of blocks."""
    return next(each for each in module.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == 2)


def test_a_tensor_that_is_missing_or_left_over_is_an_error(made: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(made / "llama" / "model.safetensors")
    (tmp_path / "config.json").write_bytes((made / "llama" / "config.json").read_bytes())
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: value for name, value in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    source = read_model(tmp_path)
    with pytest.raises(UnusableInput, match=r"layers\.1\.mlp\.up_proj"):
        decoder_sources(source, decoder_family(source), describe_decoder(source, decoder_family(source), 64))
    save_file({**tensors, "model.layers.0.adapter.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    source = read_model(tmp_path)
    with pytest.raises(UnusableInput, match=r"layers\.0\.adapter"):
        decoder_sources(source, decoder_family(source), describe_decoder(source, decoder_family(source), 64))
