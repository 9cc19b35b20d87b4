"""The families of networks, one file each: a family is found by its `model_type`. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from compiler.errors import UnusableInput
from compiler.model import Model
from compiler.networks.decoder_family import DecoderFamily, refuse_decoder
from compiler.networks.encoder_family import EncoderFamily, describe_encoder, encoder_sources, refuse_encoder

Family = DecoderFamily | EncoderFamily


@cache
def families() -> dict[str, Family]:
    """Every family by each of its model types, from the files of this folder in the order of their names."""
    found: dict[str, Family] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        family: Family = importlib.import_module(f"{__name__}.{name}").FAMILY
        found |= dict.fromkeys(family.model_types, family)
    return found


def refuse_network(model: Model) -> str | None:
    """Why no re-authored network computes this model; None when one does."""
    wanted, word = (DecoderFamily, "decoders") if model.is_decoder else (EncoderFamily, "encoders")
    family = families().get(str(model.config.get("model_type")))
    if not isinstance(family, wanted):
        covered = ", ".join(name for name, each in families().items() if isinstance(each, wanted))
        return f"the re-authored {word} cover the model types {covered}, not {model.config.get('model_type')}."
    if isinstance(family, DecoderFamily):
        return refuse_decoder(model, family)
    return refuse_encoder(model, family) or _refuse_tensors(model, family)


def _refuse_tensors(model: Model, family: EncoderFamily) -> str | None:
    """Why the tensors are not those of the network, by their names."""
    try:
        encoder_sources(model, family, describe_encoder(model, family))
    except UnusableInput as error:
        return f"the tensors are not those of the re-authored network. {error}"
    return None


def decoder_family(model: Model) -> DecoderFamily:
    """The family of a decoder.

    Raises:
        UnusableInput: there is none.
    """
    family = families().get(str(model.config.get("model_type")))
    if not isinstance(family, DecoderFamily):
        raise UnusableInput(f"No re-authored network computes {model.name}: {refuse_network(model)}")
    return family


def encoder_family(model: Model) -> EncoderFamily:
    """The family of an encoder.

    Raises:
        UnusableInput: there is none.
    """
    family = families().get(str(model.config.get("model_type")))
    if not isinstance(family, EncoderFamily):
        raise UnusableInput(f"No re-authored network computes {model.name}: {refuse_network(model)}")
    return family
