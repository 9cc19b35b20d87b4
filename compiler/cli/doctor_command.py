"""`edgec doctor`."""

from __future__ import annotations

import os
import platform
import shutil

import click
import psutil

from compiler.cli.display import format_bytes, print_json, print_table
from compiler.digest import tool_version
from compiler.installation import install_command
from compiler.stages.cache import cache_root

# distribution, the extra that brings it, what it is for
TOOLS: tuple[tuple[str, str, str], ...] = (
    ("torch", "reference", "the Reference, exports"),
    ("transformers", "reference", "the Reference, exports"),
    ("gguf", "reference", "import of .gguf files"),
    ("peft", "adapter", "merge LoRA adapters"),
    ("pillow", "reference", "pictures for image models"),
    ("sentencepiece", "gguf", "convert models with SentencePiece tokenizers"),
    ("llama-cpp-python", "gguf", "quantize and run GGUF"),
    ("onnx", "onnx", "ONNX graphs"),
    ("onnxscript", "onnx", "export to ONNX"),
    ("onnxruntime", "onnx", "run encoders"),
    ("onnxruntime-genai", "onnx", "build and run language models"),
    ("litert-torch", "tflite", "convert to LiteRT"),
    ("ai-edge-litert", "tflite", "run LiteRT"),
    ("litert-lm-builder", "tflite", "write .litertlm bundles"),
    ("litert-lm-api", "tflite", "run language models on LiteRT"),
    ("tensorflow", "tensorflow", "read SavedModels and .keras files"),
    ("coremltools", "coreml", "write Core ML packages"),
    ("apache-tvm", "neo", "compile and run with TVM"),
    ("plotly", "report", "charts of the HTML report"),
)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List what is installed and how to get what is missing."""
    found = [(name, tool_version(name), extra, purpose) for name, extra, purpose in TOOLS]
    cache = cache_root()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    facts = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "memory": format_bytes(psutil.virtual_memory().total),
        "free disk at the cache": format_bytes(shutil.disk_usage(existing).free),
        "cache": str(cache),
    }
    if as_json:
        tools = [{"tool": name, "version": version, "extra": extra} for name, version, extra, _ in found]
        print_json({"facts": facts, "tools": tools})
        return
    print_table("This machine", ["", "what"], [[name, value] for name, value in facts.items()])
    rows = [
        [name, version or "missing", purpose, "" if version else install_command(extra)]
        for name, version, extra, purpose in found
    ]
    print_table("Tools", ["tool", "version", "for", "how to get it"], rows)
