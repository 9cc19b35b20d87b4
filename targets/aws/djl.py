"""What DJL Serving's container reads beside a handler: `serving.properties`, and `model.py`, which it calls.

The container's layout and the contract of `handle`: deepjavalibrary/djl-serving, wlm's ModelInfo.java and PyModel.java,
engines/python/setup/djl_python. Its Python is 3.11, and has no compiler.
"""

from __future__ import annotations

import shutil
from pathlib import Path

PROPERTIES = """engine=Python
option.entryPoint=model.py
minWorkers=1
maxWorkers=1
batch_size=1
job_queue_size=100
"""

_MODEL = '''"""Answers for DJL Serving, by the functions of code/inference.py. Made by edgec."""

import sys
from pathlib import Path

from djl_python import Output

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "code"))

import inference  # noqa: E402

# This file is imported more than once, code/inference.py only once.
if not hasattr(inference, "MODEL"):
    inference.MODEL = None


def handle(inputs):
    if inference.MODEL is None:
        inference.MODEL = inference.model_fn(str(HERE))
    if inputs.is_empty():
        # The call before the first request: the model is there now.
        return None
    kind = inputs.get_property("content-type") or "application/json"
    try:
        given = inference.input_fn(bytes(inputs.get_as_bytes()), kind)
        made = inference.predict_fn(given, inference.MODEL)
    except (ValueError, KeyError, TypeError) as error:
        return Output().error(str(error), code=400, message="the request is of another form")
    answer = inference.output_fn(made, "application/json")
    output = Output()
    output.add_property("Content-Type", "application/json")
    output.add(answer)
    return output
'''


def write_serving(folder: Path) -> None:
    """Write what the container reads into a folder that has `code/inference.py` and `code/requirements.txt`."""
    (folder / "serving.properties").write_text(PROPERTIES, encoding="utf-8")
    (folder / "model.py").write_text(_MODEL, encoding="utf-8")
    shutil.copyfile(folder / "code" / "requirements.txt", folder / "requirements.txt")
