"""What answers requests on AWS: the four functions that SageMaker's inference toolkit calls, around a package's own runtime.

The toolkit: aws/sagemaker-inference-toolkit, whose layout is model files at the top of a folder, `code/inference.py` and
`code/requirements.txt` beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

from compiler.errors import UnusableInput, missing_extra
from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.sentence import OUTPUT
from compiler.task import GENERATION, find_task
from targets.aws.generate import generator

_LONGEST = 512
# What a request is, in JSON and in words.
_TEXT = ('{"inputs": "a text"} or {"inputs": ["a text", "another"]}', "a text or a list of texts")
_PAIR = (
    '{"inputs": {"question": "a question", "context": "a text"}} or a list of such',
    "a question and a context, or a list of such",
)
# What a request is, and what comes of each input, as Hugging Face's pipelines have it.
_TASKS = {
    "feature-extraction": (_TEXT, "vectors of its tokens"),
    "text-classification": (_TEXT, "labels with their scores"),
    "token-classification": (_TEXT, "its tokens that have a label, with scores and places"),
    "question-answering": (_PAIR, "the likeliest span of the text, with its score and place"),
}
_ENCODE = Template('''"""Serves $model as $recipe: the functions that SageMaker's inference toolkit calls. Made by edgec.

A request is $request; the answer has $answer for each.
"""

import json
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
$imports

TASK = "$task"
INPUTS = $inputs
OUTPUTS = $outputs
# Tokens of a text at most, and what it is filled up to; None where any length will do.
LONGEST, LENGTH = $longest, $length
# Names of the outputs, and what they are; what stands before every text, and whether it is made small.
LABELS, PROBLEM = $labels, json.loads('$problem')
PREFIX, LOWER = $prefix, $lower


def model_fn(model_dir):
    tokenizer = Tokenizer.from_file(str(Path(model_dir) / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    return tokenizer, open_model(Path(model_dir) / "$file")


$open


def input_fn(data, content_type):
    if content_type.partition(";")[0] != "application/json":
        raise ValueError(f"{content_type} is not taken; send application/json.")
    given = json.loads(data)
    asked = given.get("inputs") if isinstance(given, dict) else None
    asked = [asked] if isinstance(asked, (str, dict)) else asked
    if not isinstance(asked, list) or not asked or not all(is_input(each) for each in asked):
        raise ValueError("Send inputs: $request_words.")
    return asked


def is_input(given):
    if TASK == "question-answering":
        return isinstance(given, dict) and all(isinstance(given.get(name), str) for name in ("question", "context"))
    return isinstance(given, str)


def predict_fn(asked, model):
    return [answer(each, *model) for each in asked]


def answer(given, tokenizer, run):
    if TASK == "question-answering":
        # Its own marks, and one token of the text at least.
        tokenizer.no_truncation()
        if len(tokenizer.encode(given["question"]).ids) + 4 >= LONGEST:
            raise ValueError("The question leaves no room for the text.")
        tokenizer.enable_truncation(LONGEST, strategy="only_second")
        encoded = tokenizer.encode(given["question"], given["context"])
    else:
        encoded = tokenizer.encode(PREFIX + (given.lower() if LOWER else given))
    count, parts, places = len(encoded.ids), list(encoded.sequence_ids), list(encoded.offsets)
    if LENGTH is not None:
        encoded.pad(LENGTH)
    arrays = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    found = run({name: np.asarray([arrays[name]], dtype) for name, dtype in INPUTS.items()})
    if TASK == "question-answering":
        return span(given["context"], parts, places, found["start_logits"][0][:count], found["end_logits"][0][:count])
    value = np.asarray(found["$output"], np.float32)[0]
    if TASK == "token-classification":
        return labelled(given, parts, places, value[:count])
    if LABELS:
        shares = scores(value)
        return [{"label": LABELS[place], "score": float(shares[place])} for place in np.argsort(-shares)]
    return (value if value.ndim == 1 else value[:count]).tolist()


def labelled(text, parts, places, logits):
    """What stands there: all tokens but those that are outside."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return [
        {"entity": LABELS[best], "score": float(shares[place, best]), "index": place, "word": text[begin:end], "start": begin,
         "end": end}
        for place, (best, (begin, end)) in enumerate(zip(shares.argmax(1), places))
        if parts[place] is not None and LABELS[best] != "O"
    ]


def span(text, parts, places, starts, ends):
    """The two ends in the text, at most 30 tokens apart, whose scores are together the highest (arXiv:1810.04805, 4.2)."""
    inside = np.asarray([part == 1 for part in parts])
    starts, ends = (np.where(inside, each.astype(np.float64), -np.inf) for each in (starts, ends))
    both = starts[:, None] + ends[None, :]
    both[np.tril_indices(len(both), -1)] = both[np.triu_indices(len(both), 30)] = -np.inf
    first, last = np.unravel_index(both.argmax(), both.shape)
    total = sum(each.max() + np.log(np.exp(each - each.max()).sum()) for each in (starts, ends))
    begin, end = places[first][0], places[last][1]
    return {"answer": text[begin:end], "score": float(np.exp(both[first, last] - total)), "start": begin, "end": end}


def scores(logits):
    """As the model was trained: numbers as they are, each label for itself, or all together."""
    if PROBLEM == "regression":
        return logits
    if PROBLEM == "multi_label_classification" or len(logits) == 1:
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def output_fn(prediction, accept):
    return json.dumps(prediction)
''')


@dataclass(frozen=True)
class _Runtime:
    """How a runtime is opened: the file's name in the kit, imports, the function `open_model`, distributions it needs."""

    file: str
    imports: str
    open: str
    tools: tuple[str, ...]


_RUNTIMES: Mapping[str, _Runtime] = {
    "onnxruntime": _Runtime(
        "model.onnx",
        "import onnxruntime",
        "def open_model(file):\n"
        "    session = onnxruntime.InferenceSession(str(file))\n"
        "    names = [each.name for each in session.get_outputs()]\n"
        "    return lambda inputs: dict(zip(names, session.run(names, inputs)))",
        ("onnxruntime", "numpy", "tokenizers"),
    ),
    "litert": _Runtime(
        "model.tflite",
        "from ai_edge_litert.interpreter import Interpreter",
        "def open_model(file):\n"
        "    run = Interpreter(str(file), num_threads=os.cpu_count()).get_signature_runner()\n"
        "    return lambda inputs: run(**inputs)",
        ("ai-edge-litert", "numpy", "tokenizers"),
    ),
    "tvm": _Runtime(
        "compiled.so",
        'os.environ["TVM_USE_RUNTIME_LIB"], os.environ["TVM_BIND_THREADS"] = "1", "0"\n'
        'os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count()))\n'
        "import tvm\n"
        "from tvm.runtime.vm import VirtualMachine",
        "def open_model(file):\n"
        '    main = VirtualMachine(tvm.runtime.load_module(str(file)), tvm.cpu())["main"]\n'
        "\n"
        "    def run(inputs):\n"
        "        found = main(*(tvm.runtime.tensor(each) for each in inputs.values()))\n"
        '        values = [found] if hasattr(found, "numpy") else list(found)\n'
        "        return dict(zip(OUTPUTS, (each.numpy() for each in values)))\n"
        "\n"
        "    return run",
        ("apache-tvm", "numpy", "tokenizers"),
    ),
}


def require_for(package: Package, system: str) -> None:
    """Refuse native code of another machine than the kit is for, or that was compiled for this very processor.

    Raises:
        UnusableInput: it is such a package.
    """
    needs = package.lowered.platform
    if needs is None:
        return
    if system == "sagemaker" and (needs.system, needs.machine) != ("Linux", "x86_64"):
        raise UnusableInput(
            f"{package.title} is for {needs.machine}, and the kit's container runs on x86-64. Build another."
        )
    if package.recipe_full.get("variant") in (None, "local"):
        raise UnusableInput(
            f"{package.title} was compiled for the processor of the machine that built it, and other machines may lack its "
            "instructions. Build neo:fp32@x86-64-v3, or @aarch64 for a board."
        )


def write_handler(package: Package, folder: Path) -> None:
    """Write the model's files into `folder`, and `inference.py` and `requirements.txt` into its `code`.

    Raises:
        UnusableInput: the package takes something else than texts, or a library of its runtime is not installed here.
    """
    code = folder / "code"
    code.mkdir(parents=True)
    if find_task(package.model.task).kind == GENERATION:
        script, files, tools = generator(package)
    else:
        script, files, tools = _encode(package)
    for name, own in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package.folder / own, folder / name)
    (code / "inference.py").write_text(script, encoding="utf-8")
    pinned = "".join(f"{name}=={_version(name, package)}\n" for name in tools)
    (code / "requirements.txt").write_text(pinned, encoding="utf-8")


def _version(tool: str, package: Package) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError as error:
        raise missing_extra(tool, package.recipe.partition(":")[0]) from error


def _encode(package: Package) -> tuple[str, dict[str, str], tuple[str, ...]]:
    task, main, shapes = package.model.task, package.lowered.main, package.lowered.shapes
    if package.lowered.runtime not in _RUNTIMES or len(package.lowered.graphs) != 1:
        raise UnusableInput(
            f"The kit serves encoders of one length by {', '.join(_RUNTIMES)}, and {package.title} is none. Build onnx:int8, "
            "for instance."
        )
    if task not in _TASKS or shapes.batch not in (None, 1):
        raise UnusableInput(f"The kit serves {', '.join(_TASKS)}, one text at a time; {package.title} is for {task}.")
    if "tokenizer.json" not in package.files:
        raise UnusableInput(
            f"{package.title} has no tokenizer.json, which the kit needs. Build it of a model that has one."
        )
    runtime, ((request, words), answer) = _RUNTIMES[package.lowered.runtime], _TASKS[task]
    outputs = tuple(port.name for port in main.outputs)
    output = OUTPUT if OUTPUT in outputs else outputs[0]
    config = read_object(package.folder / "config.json")
    labels = _labels(config, main.outputs[0].shape[-1]) if task.endswith("-classification") else []
    sentence, longest = package.sentence, shapes.longest_sequence or _LONGEST
    length = longest if shapes.sequence_lengths else None
    if sentence is not None and sentence.max_tokens:
        longest = min(longest, sentence.max_tokens)
    script = _ENCODE.substitute(
        model=package.model.name, recipe=package.recipe, imports=runtime.imports, open=runtime.open,
        inputs={port.name: port.dtype for port in main.inputs}, outputs=outputs, output=output, longest=longest,
        length=length, file=runtime.file, labels=json.dumps(labels), problem=json.dumps(config.get("problem_type")),
        prefix=json.dumps(sentence.prompts.get(sentence.default_prompt or "", "") if sentence else ""),
        lower=bool(sentence and sentence.lower_case),
        answer=answer if output != OUTPUT else "the text's vector", task=task, request=request, request_words=words,
    )  # fmt: skip
    return script, {runtime.file: main.files[0], "tokenizer.json": "tokenizer.json"}, runtime.tools


def _labels(config: Mapping[str, Any], outputs: int | str) -> list[str]:
    """The name of each output; its number where config.json tells none."""
    told = config.get("id2label")
    named = told if isinstance(told, dict) else {}
    count = outputs if isinstance(outputs, int) else len(named) or 2
    return [str(named.get(str(number), number)) for number in range(count)]
