"""What answers requests to a language model on AWS: the toolkit's functions around llama.cpp, or around ONNX Runtime GenAI."""

from __future__ import annotations

from string import Template

from compiler.errors import UnusableInput
from compiler.formats.genai_config import require_known_settings
from compiler.package import Package
from targets.aws.openers import READ_JSON, Handler

_TOKENS = 4096
GGUF = "model.gguf"

_INPUT_FN = (
    """def input_fn(data, content_type):
    if content_type.partition(";")[0] != "application/json":
        raise ValueError(f"{content_type} is not taken; send application/json.")
"""
    + READ_JSON
    + """
    if not isinstance(given, dict) or ("inputs" in given) == ("messages" in given):
        raise ValueError("Send inputs, a text, or messages, a chat; one of them.")
    if "inputs" in given and not isinstance(given["inputs"], str):
        raise ValueError("Send inputs: a text.")
    chat = given.get("messages", [])
    if not isinstance(chat, list) or not all(isinstance(each, dict) for each in chat):
        raise ValueError("Send messages: a list of them, each with a role and its content.")
    if not isinstance(given.get("parameters", {}), dict):
        raise ValueError("Send parameters: their names with their values.")
    return given"""
)

_LLAMACPP = Template('''"""Serves $model as $recipe: the functions that SageMaker's inference toolkit calls. Made by edgec.

A request is {"inputs": "a text", "parameters": {"max_new_tokens": 64, "temperature": 0}}, or as OpenAI's chats are:
{"messages": [{"role": "user", "content": "a text"}], "max_tokens": 64}.
"""

import json
import os
from pathlib import Path

from llama_cpp import Llama

TOKENS = $tokens


def model_fn(model_dir):
    return Llama(str(Path(model_dir) / "$file"), n_ctx=TOKENS, n_threads=os.cpu_count(), verbose=False)


$input_fn


def predict_fn(given, model):
    if "messages" in given:
        asked = {name: given[name] for name in ("max_tokens", "temperature", "top_p", "stop", "seed") if name in given}
        return model.create_chat_completion(given["messages"], **{"max_tokens": 256, **asked})
    asked = given.get("parameters", {})
    most, heat = int(asked.get("max_new_tokens", 64)), float(asked.get("temperature", 0))
    made = model.create_completion(given["inputs"], max_tokens=most, temperature=heat)
    return [{"generated_text": made["choices"][0]["text"]}]


def output_fn(prediction, accept):
    return json.dumps(prediction)
''')

_GENAI = Template('''"""Serves $model as $recipe: the functions that SageMaker's inference toolkit calls. Made by edgec.

A request is {"inputs": "a text", "parameters": {"max_new_tokens": 64, "temperature": 0}}, or as OpenAI's chats are:
{"messages": [{"role": "user", "content": "a text"}], "max_tokens": 64}.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

TOKENS = $tokens


def model_fn(model_dir):
    model = og.Model(str(Path(model_dir) / "genai"))
    return model, og.Tokenizer(model)


$input_fn


def predict_fn(given, model):
    model, tokenizer = model
    chat = "messages" in given
    asked = given if chat else given.get("parameters", {})
    most = int(asked.get("max_tokens", 256) if chat else asked.get("max_new_tokens", 64))
    prompt = given.get("inputs")
    if chat:
        prompt = tokenizer.apply_chat_template(json.dumps(given["messages"]), add_generation_prompt=True)
    # A template has the marks in it.
    tokenizer.update_options(add_special_tokens="false" if chat else "true")
    tokens = np.asarray(tokenizer.encode(prompt), np.int32)
    if len(tokens) >= TOKENS:
        raise ValueError(f"The text has {len(tokens)} tokens, and {TOKENS} are held with the answer.")
    text, end = written(model, tokenizer, tokens, most, float(asked.get("temperature", 0)))
    if not chat:
        return [{"generated_text": text}]
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": end}]}


def written(model, tokenizer, tokens, most, heat):
    """The text behind the tokens, and why it ends there."""
    params = og.GeneratorParams(model)
    options = {"do_sample": True, "temperature": heat} if heat > 0 else {"do_sample": False}
    params.set_search_options(max_length=min(TOKENS, len(tokens) + most), **options)
    generator = og.Generator(model, params)
    generator.append_tokens(tokens)
    while not generator.is_done():
        generator.generate_next_token()
    made = generator.get_sequence(0)[len(tokens):]
    return tokenizer.decode(made), "length" if len(made) == most else "stop"


def output_fn(prediction, accept):
    return json.dumps(prediction)
''')


def generator(package: Package) -> Handler:
    """What serves a language model.

    Raises:
        UnusableInput: neither runtime runs it.
    """
    return _by_genai(package) if package.lowered.runtime == "ortgenai" else _by_llamacpp(package)


def _by_genai(package: Package) -> Handler:
    require_known_settings(package.folder, package.title)
    script = _GENAI.substitute(
        model=package.model.name, recipe=package.recipe, input_fn=_INPUT_FN, tokens=context_tokens(package)
    )
    # GenAI opens a folder, by names of its own.
    own = [name for name in package.files if not name.endswith(".md")]
    return Handler(script, {f"genai/{name}": name for name in own}, ("onnxruntime-genai", "numpy"))


def _by_llamacpp(package: Package) -> Handler:
    require_gguf(package)
    script = _LLAMACPP.substitute(
        model=package.model.name, recipe=package.recipe, input_fn=_INPUT_FN, tokens=context_tokens(package), file=GGUF
    )
    return Handler(script, {GGUF: package.lowered.main.files[0]}, ("llama-cpp-python",))


def context_tokens(package: Package) -> int:
    """Tokens of text and answer that a server holds room for."""
    shapes = package.lowered.shapes
    return shapes.context_length or min(shapes.longest_sequence or _TOKENS, _TOKENS)


def require_gguf(package: Package) -> None:
    """Raise UnusableInput for a language model that llama.cpp does not run from one file."""
    if package.lowered.runtime != "llamacpp" or len(package.lowered.main.files) != 1:
        raise UnusableInput(
            f"The kit serves language models by llama.cpp, from one file, or by ONNX Runtime GenAI, and {package.title} is "
            "none of those. Build gguf:Q4_K_M, for instance."
        )
