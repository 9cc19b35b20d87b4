"""What LiteRT-LM's engine is told of a model (runtime/proto/llm_metadata.proto)."""

from __future__ import annotations

import json
from typing import Any

from litert_lm_builder.runtime.proto import llm_metadata_pb2

from compiler.errors import UnusableInput
from compiler.formats.litertlm import open_litertlm, read_metadata
from compiler.model import Model
from compiler.package import Package
from compiler.tokenizer import end_of_text_ids, load_tokenizer, start_of_text_ids

# The engine gives templates every content as a list of parts, where Hugging Face's templates expect a text.
_CONTENT_AS_TEXT = (
    "{%- set told = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message.content is string or not message.content -%}"
    "{%- set told.messages = told.messages + [message] -%}"
    "{%- else -%}"
    "{%- set text = message.content | map(attribute='text') | join('') -%}"
    "{%- set told.messages = told.messages + [dict(message, content=text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = told.messages -%}"
)


def metadata_of(model: Model, longest: int) -> bytes:
    """The message, the same bytes each time; begin and end tokens and the template are the model's own."""
    tokenizer = load_tokenizer(model.folder)
    told = llm_metadata_pb2.LlmMetadata()
    told.llm_model_type.generic_model.SetInParent()
    told.max_num_tokens = longest
    told.supports_thinking = told.supports_function_calling = False
    if begin := start_of_text_ids(tokenizer):
        told.start_token.token_ids.ids.extend(begin)
    for end in sorted(end_of_text_ids(model.folder)):
        told.stop_tokens.add().token_ids.ids.append(end)
    if template := _template_of(tokenizer):
        told.jinja_prompt_template = _tokens_as_text(tokenizer) + _CONTENT_AS_TEXT + template
    return bytes(told.SerializeToString(deterministic=True))


def require_template(package: Package) -> None:
    """Refuse a package of a model without a chat template, with which the engine makes no conversation.

    Raises:
        UnusableInput: it has none.
    """
    with open_litertlm(package.artifact) as sections:
        told = read_metadata(sections, package.artifact)
    if not told.jinja_prompt_template:
        raise UnusableInput(
            f"{package.model.name} came without a chat template, and the kit chats. Put chat_template.jinja beside the model "
            "and build the package again."
        )


def _template_of(tokenizer: Any) -> str | None:
    """The chat template; of several the one that is used where none is named."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _tokens_as_text(tokenizer: Any) -> str:
    """The tokens that templates write, which are empty in the engine; a begin token that it puts first itself stays empty."""
    tokens = {"eos_token": tokenizer.eos_token}
    if not start_of_text_ids(tokenizer):
        tokens["bos_token"] = tokenizer.bos_token
    return "".join(
        f"{{%- set {name} = {json.dumps(str(token), ensure_ascii=False)} -%}}"
        for name, token in tokens.items()
        if token
    )
