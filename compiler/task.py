"""The tasks that models are for. Everything that differs from task to task is a row here, or the kind that the row names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compiler.errors import UnusableInput

Input = Literal["text", "image", "arrays"]

GENERATION = "generation"
ENCODING = "encoding"
FUNCTION = "function"
VECTORS = "feature-extraction"


@dataclass(frozen=True)
class Task:
    """What a model is for.

    Attributes:
        name: the hub's word for it (`pipeline_tag`), where the hub has one.
        kind: how such models are used: a file in `runtimes/kinds/`.
        auto_class: the class of transformers that reads them; empty where it has none.
        outputs: the fields of transformers' model output that are the result, in order.
        takes: what goes in.
        architectures: how the class names in config.json end; the first match over all tasks wins.
        samples: the stage function that writes calibration samples, `module:function`.
    """

    name: str
    kind: str
    auto_class: str
    outputs: tuple[str, ...]
    takes: Input = "text"
    architectures: tuple[str, ...] = ()
    samples: str = "compiler.quantize.calibrate.samples:write_text_samples"


TASKS: tuple[Task, ...] = (
    Task(
        "text-generation",
        GENERATION,
        "AutoModelForCausalLM",
        ("logits",),
        architectures=("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"),
        samples="compiler.quantize.calibrate.samples:write_decoder_samples",
    ),
    Task(
        "text-classification",
        ENCODING,
        "AutoModelForSequenceClassification",
        ("logits",),
        architectures=("ForSequenceClassification",),
    ),
    Task(
        "token-classification",
        ENCODING,
        "AutoModelForTokenClassification",
        ("logits",),
        architectures=("ForTokenClassification",),
    ),
    Task(
        "question-answering",
        ENCODING,
        "AutoModelForQuestionAnswering",
        ("start_logits", "end_logits"),
        architectures=("ForQuestionAnswering",),
    ),
    Task(
        "fill-mask",
        ENCODING,
        "AutoModelForMaskedLM",
        ("logits",),
        architectures=("ForMaskedLM", "ForPreTraining"),
    ),
    Task(
        "image-classification",
        ENCODING,
        "AutoModelForImageClassification",
        ("logits",),
        takes="image",
        architectures=("ForImageClassification",),
        samples="compiler.quantize.calibrate.samples:write_image_samples",
    ),
    Task(VECTORS, ENCODING, "AutoModel", ("last_hidden_state",), architectures=("Model",)),
    # A TensorFlow function; what goes in and out is in its config.json.
    Task(
        FUNCTION,
        FUNCTION,
        "",
        (),
        takes="arrays",
        architectures=("TensorFlowFunction",),
        samples="compiler.quantize.calibrate.arrays:write_array_samples",
    ),
)


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnusableInput: there is none.
    """
    found = next((task for task in TASKS if task.name == name), None)
    if found is None:
        raise UnusableInput(f"There is no task {name!r}. Tasks are: {', '.join(task.name for task in TASKS)}.")
    return found


def task_of_architecture(architecture: str) -> Task | None:
    """The task that a class name of transformers tells; None when it tells none."""
    return next((task for task in TASKS if architecture.endswith(task.architectures or ("\0",))), None)


def tasks_of(kind: str, takes: Input | None = None) -> tuple[str, ...]:
    """The names of the tasks of a kind, of one input where it is named."""
    return tuple(task.name for task in TASKS if task.kind == kind and takes in (None, task.takes))
