"""Settings of config.json that llama.cpp computes one way only, whatever the file says: they are not written into it.

Each row follows the graph of that architecture in llama.cpp (src/models).
"""

from __future__ import annotations

from compiler.model import Model
from compiler.sentence import describe

_SILU = ("silu", "swish")
_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), _SILU
    ),
    **dict.fromkeys(("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM"), _SILU),
    **dict.fromkeys(("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GPT2LMHeadModel"), _GELU),
    **dict.fromkeys(("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "DistilBertModel"), _GELU),
}
# Whether the weights of the chosen experts are made to sum to one.
_EXPERTS_SUM = {"Qwen3MoeForCausalLM": True, "Qwen2MoeForCausalLM": False, "OlmoeForCausalLM": False}


# What llama.cpp pools by (enum llama_pooling_type of llama.h).
_POOLINGS = ("mean", "cls", "lasttoken")


def refuse_settings(model: Model) -> str | None:
    """Why llama.cpp would compute another model; None where it does not."""
    config = model.config
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    name, activation = next(((name, config[name]) for name in names if config.get(name)), ("", None))
    known = _ACTIVATIONS.get(model.architecture)
    if activation and known and activation not in known:
        return (
            f"its {name} is {activation}, and llama.cpp computes {known[0]} for every {model.architecture}; it would be "
            "another model."
        )
    norm = bool(config.get("norm_topk_prob", False))
    if _EXPERTS_SUM.get(model.architecture, norm) != norm:
        return (
            f"its norm_topk_prob is {str(norm).lower()}, and llama.cpp takes {str(not norm).lower()} for every "
            f"{model.architecture}: its experts would be weighed another way."
        )
    if model.sentence is not None and (len(model.sentence.pooling) > 1 or model.sentence.pooling[0] not in _POOLINGS):
        made = describe(model.sentence)
        return f"its sentence vector is made by {made}, and llama.cpp's pooling is one of {', '.join(_POOLINGS)}."
    if model.sentence is not None and model.sentence.dense:
        return f"its sentence vector is made by {describe(model.sentence)}, and llama.cpp has no dense layer for it."
    return None
