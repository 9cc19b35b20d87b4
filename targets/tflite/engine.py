"""What LiteRT-LM's engine is told of a model (runtime/proto/llm_metadata.proto)."""

from __future__ import annotations

from litert_lm_builder.runtime.proto import llm_metadata_pb2

from compiler.model import Model
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
    if tokenizer.chat_template:
        told.jinja_prompt_template = _CONTENT_AS_TEXT + tokenizer.chat_template
    return bytes(told.SerializeToString(deterministic=True))
