"""Kits for AWS as a container has them: their folders, and what AWS's own programs make of requests by them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any


def model_folder(kit: Path, tmp_path: Path) -> Path:
    """/opt/ml/model as SageMaker makes it of the archive."""
    folder = tmp_path / "opt" / "ml" / "model"
    folder.mkdir(parents=True)
    with tarfile.open(kit / "model.tar.gz", "r:gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def component_folder(kit: Path, tmp_path: Path) -> Path:
    """/opt/ml/model with what a component of Greengrass is unpacked to: the toolkit takes the same handler."""
    folder = tmp_path / "opt" / "ml" / "model"
    with zipfile.ZipFile(kit / "component.zip") as archive:
        archive.extractall(folder)
    return folder


_TOOLKIT = """
import json, os, sys
sys.path.insert(0, os.path.join(sys.argv[1], "code"))
from sagemaker_inference import environment, transformer
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
class Processor:
    def get_request_properties(self): return {"Content-Type": "application/json", "Accept": "application/json"}
    def add_response_property(self, name, value): pass
    def report_status(self, code, reason_phrase=None): print("STATUS", code, reason_phrase, file=sys.stderr)
class Context:
    request_processor = [Processor()]
    system_properties = {"model_dir": sys.argv[1]}
    def get_request_header(self, index, name): return "application/json"
    def get_all_request_header(self, index): return {"Content-Type": "application/json", "Accept": "application/json"}
    def set_response_content_type(self, index, kind): self.kind = kind
    def set_response_status(self, code, phrase=None, idx=0): print("STATUS", code, phrase, file=sys.stderr)
made = transformer.Transformer(DefaultInferenceHandler())
(answer,) = made.transform([{"body": sys.stdin.read().encode()}], Context())
print(answer if isinstance(answer, str) else answer.decode())
"""


def by_the_toolkit(folder: Path, request: dict[str, Any]) -> Any:
    """What AWS's own toolkit makes of a request by the handler in a container's folder, in a process of its own."""
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(folder.parent.parent), "SAGEMAKER_PROGRAM": "inference.py"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TOOLKIT, str(folder)], input=json.dumps(request), text=True,
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# What DJL Serving does with model.py, by engines/python/setup/djl_python of v0.36.0: it is imported three times, called once
# with nothing before the first request, and gets bytes and properties.
DJL = """
import importlib, json, os, sys, types
class Output:
    def __init__(self): self.code, self.properties, self.content = 200, {}, []
    def error(self, text, code=424, message=""): self.code = code; self.content.append(text); return self
    def add(self, value): self.content.append(value)
    def add_property(self, name, value): self.properties[name] = value
class Input:
    def __init__(self, body=None, **properties): self.body, self.properties = body, properties
    def is_empty(self): return self.body is None
    def get_as_bytes(self): return bytearray(self.body)
    def get_property(self, name): return {k.lower(): v for k, v in self.properties.items()}.get(name.lower())
sys.modules["djl_python"] = types.SimpleNamespace(Input=Input, Output=Output)
os.chdir(sys.argv[1]); sys.path.insert(0, sys.argv[1])
for _ in range(3):
    sys.modules.pop("model", None)
    model = importlib.import_module("model")
assert model.handle(Input()) is None
answers = []
for body in json.loads(sys.stdin.read()):
    made = model.handle(Input(body.encode(), **{"Content-Type": "application/json"}))
    answers.append([made.code, made.properties.get("Content-Type"), "".join(made.content)])
print(json.dumps(answers))
"""
REAL_DJL = """
import json, sys
from djl_python.test_model import TestHandler, extract_output_as_string
from djl_python import Input
handler = TestHandler("model.py", sys.argv[1])
assert handler.inference(Input()) is None
answers = []
for body in json.loads(sys.stdin.read()):
    given = Input(); given.content.add(key="data", value=bytearray(body.encode()))
    given.properties["Content-Type"] = "application/json"
    made = handler.inference(given)
    answers.append([made.code, made.properties.get("Content-Type"), extract_output_as_string(made)])
print(json.dumps(answers))
"""


def by_djl(folder: Path, requests: list[str], script: str = DJL) -> list[tuple[int, str | None, str]]:
    """What requests get by model.py in DJL Serving's layout, in a process of its own."""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, input=json.dumps(requests), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return [(code, kind, text) for code, kind, text in json.loads(done.stdout.splitlines()[-1])]


def free_port() -> int:
    """A port of this machine that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for(url: str) -> None:
    """Until a server answers."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                assert reply.status == 200
            return
        except OSError:
            time.sleep(0.2)
