"""A folder with a script of a few lines that runs a LiteRT package on a board: the runtime's wheel is all that it needs."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from string import Template

from compiler.errors import UnusableInput, missing_extra
from compiler.formats.json_file import read_object
from compiler.package import Package
from compiler.task import FUNCTION, GENERATION, find_task
from compiler.tensorflow_function import read_signature
from targets.tflite.engine import require_template
from targets.tflite.target import BUNDLE, FILE

_CHAT = Template('''"""Chat with $model: `python run.py "a question"`, or without one for a conversation."""

import sys
from pathlib import Path

import litert_lm

MODEL = Path(__file__).with_name("$file")
# The cache grows up to this as tokens come; the model takes $longest at most.
TOKENS = $tokens
# Weights as the kernels read them, written on the first run: half the memory from then on.
CACHE = MODEL.with_name("cache-$digest")
CACHE.mkdir(exist_ok=True)


def answer(chat: litert_lm.AbstractConversation, text: str) -> None:
    """Print what the model says, piece by piece."""
    for part in chat.send_message_async(text):
        print("".join(piece["text"] for piece in part["content"]), end="", flush=True)
    print()


with litert_lm.Engine(str(MODEL), max_num_tokens=TOKENS, cache_dir=str(CACHE)) as engine:
    with engine.create_conversation() as chat:
        if sys.argv[1:]:
            answer(chat, " ".join(sys.argv[1:]))
        else:
            for line in sys.stdin:
                answer(chat, line.strip())
''')

_ENCODE = Template('''"""Run $model: `python run.py "a text" "another"` prints what it gives for each as a line of JSON."""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from tokenizers import Tokenizer

HERE = Path(__file__).parent
# The signature for texts of so many tokens at most.
SIGNATURES = $signatures

tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
tokenizer.enable_truncation($most)
tokenizer.no_padding()
interpreter = Interpreter(str(HERE / "$file"), num_threads=2)

for text in sys.argv[1:]:
    encoded = tokenizer.encode($text)
    length = next(each for each in SIGNATURES if each >= len(encoded))
    encoded.pad(length$padding)
    run = interpreter.get_signature_runner(SIGNATURES[length])
    arrays = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    given = {name: np.asarray([arrays[name]], np.int32) for name in $inputs}
    print(json.dumps({name: value[0].tolist() for name, value in run(**given).items()}))
''')

_CALL = Template('''"""Run $model: `python run.py inputs.npz outputs.npz`; each array has samples along its first axis."""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

# Of each input the sizes of a sample, its type, and whether a batch of one is put around it; of each output the last.
INPUTS = $inputs
OUTPUTS = $outputs

run = Interpreter(str(Path(__file__).with_name("$file")), num_threads=2).get_signature_runner("main")
given = np.load(sys.argv[1])
count = len(given[next(iter(INPUTS))])
for name, (shape, dtype, _) in INPUTS.items():
    if given[name].shape != (count, *shape) or not np.can_cast(given[name].dtype, dtype, "same_kind"):
        sys.exit(f"{name} must be {dtype} of the shape {(count, *shape)}, not {given[name].dtype} {given[name].shape}.")
results: dict[str, list] = {name: [] for name in OUTPUTS}
for number in range(count):
    samples = {name: given[name][number].astype(dtype) for name, (_, dtype, _) in INPUTS.items()}
    made = run(**{name: sample[None] if INPUTS[name][2] else sample for name, sample in samples.items()})
    for name, batched in OUTPUTS.items():
        results[name].append(made[name][0] if batched else made[name])
np.savez(sys.argv[2], **{name: np.stack(values) for name, values in results.items()})
''')

_TOKENS = 2048


def fill_kit(package: Package, root: Path) -> None:
    """Write the script, the model, the tokenizer and `requirements.txt` into the folder `root`.

    Raises:
        UnusableInput: the package takes pictures, or several inputs at once.
    """
    kind = find_task(package.model.task).kind
    if kind == GENERATION:
        require_template(package)
        script, files, tools = _chat(package), [BUNDLE], ["litert-lm-api"]
    elif kind == FUNCTION:
        script, files, tools = _call(package), [FILE], ["ai-edge-litert", "numpy"]
    else:
        script, files, tools = _encode(package), [FILE, "tokenizer.json"], ["ai-edge-litert", "numpy", "tokenizers"]
    for name in files:
        shutil.copyfile(package.folder / name, root / name)
    (root / "run.py").write_text(script, encoding="utf-8")
    pinned = "".join(f"{name}=={_version(name)}\n" for name in tools)
    (root / "requirements.txt").write_text(pinned, encoding="utf-8")
    (root / "README.md").write_text(_readme(package), encoding="utf-8")


def _version(tool: str) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError as error:
        raise missing_extra(tool, "tflite") from error


def _chat(package: Package) -> str:
    longest = package.lowered.shapes.longest_sequence or _TOKENS
    own = package.lowered.shapes.context_length
    return _CHAT.substitute(
        model=package.model.name,
        file=BUNDLE,
        longest=longest,
        tokens=own or min(longest, _TOKENS),
        digest=package.files[BUNDLE].sha256[:12],
    )


def _call(package: Package) -> str:
    if package.lowered.shapes.batch not in (None, 1):
        raise UnusableInput(
            f"{package.title} takes several samples at once, which the script of the kit for python does not prepare. Build "
            "it with a batch of 1."
        )
    inputs, outputs = read_signature(read_object(package.folder / "config.json"), package.title)
    return _CALL.substitute(
        model=package.model.name,
        file=FILE,
        inputs={port.name: (port.sample_shape, port.dtype, port.is_batched) for port in inputs},
        outputs={port.name: port.is_batched for port in outputs},
    )


def _encode(package: Package) -> str:
    graph, shapes = package.lowered.main, package.lowered.shapes
    pairs = package.model.task == "question-answering"
    if not shapes.sequence_lengths or shapes.batch not in (None, 1) or pairs:
        what = "pictures" if not shapes.sequence_lengths else "two texts" if pairs else "several inputs at once"
        raise UnusableInput(
            f"{package.title} takes {what}, which the script of the kit for python does not prepare. Take a package of texts, "
            "one at a time."
        )
    padding = json.loads((package.folder / "tokenizer.json").read_text(encoding="utf-8")).get("padding") or {}
    known = {key: padding[key] for key in ("pad_id", "pad_token") if key in padding}
    prompts = package.sentence
    prefix = prompts.prompts.get(prompts.default_prompt or "", "") if prompts is not None else ""
    text = f"{prefix!r} + text" if prefix else "text"
    longest = shapes.sequence_lengths[-1]
    signatures = dict(zip(shapes.sequence_lengths, (each.name for each in package.lowered.graphs), strict=True))
    return _ENCODE.substitute(
        model=package.model.name,
        file=FILE,
        signatures=repr(signatures),
        most=min(longest, prompts.max_tokens or longest) if prompts is not None else longest,
        padding="".join(f", {key}={value!r}" for key, value in known.items()),
        text=f"({text}).lower()" if prompts is not None and prompts.lower_case else text,
        inputs=repr(tuple(port.name for port in graph.inputs)),
    )


def _readme(package: Package) -> str:
    arrays = find_task(package.model.task).kind == FUNCTION
    given = "inputs.npz outputs.npz" if arrays else '"A child is playing with a ball."'
    return f"""# {package.model.name}

As `{package.recipe}`, made by edgec. Licence of the model: {package.model.licence or "not stated"}.

```console
$ python3 -m venv venv && venv/bin/pip install -r requirements.txt
$ venv/bin/python run.py {given}
```

Nothing else is needed.
"""
