"""Kits for AWS of pictures' classifiers, of masks, and of what SageMaker Neo compiled, in a container's folder."""

from __future__ import annotations

import base64
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import Run, assert_refused
from kit_container import by_djl, by_the_toolkit, component_folder, free_port, model_folder, wait_for
from neo_job import ELF
from PIL import Image

from compiler.finish import Finished, finish_in_place
from compiler.package import Package, read_package
from runtimes.kinds.encoding.inputs import require_tokenizer, text_arrays
from runtimes.kinds.encoding.pictures import picture_inputs
from runtimes.kinds.encoding.use import classify
from runtimes.registry import open_session
from targets.neo.cloud.archive import NAME, extract
from targets.neo.cloud.drive import with_compiled
from targets.neo.cloud.job import CompilationJob
from targets.neo.target import TARGET


@pytest.fixture(scope="module")
def built(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits-pictures")
    models = {"vit": tiny.save_encoder("vit", minilm_folder, out / "vit"), "resnet": tiny.save_resnet(out / "resnet")}
    models |= {name: tiny.save_encoder(name, minilm_folder, out / name) for name in ("bert", "bert-mask")}
    options = ("--sequence-length", 32, "-o")
    for name, recipes in (
        ("vit", ("onnx:fp32", "tflite:fp32", "neo:fp32@x86-64-v3", "neo:fp32@ml_c5")),
        ("resnet", ("neo:fp32@x86-64-v3", "neo:fp32@ml_g4dn", "neo:fp32@rasp4b")),
        ("bert", ("neo:fp32@ml_c5",)),
        ("bert-mask", ("onnx:fp32",)),
    ):
        words = [word for recipe in recipes for word in ("-r", recipe)]
        done = edgec_here("build", models[name], *words, *options, out / f"{name}-out")
        assert done.returncode == 0, done.stdout + done.stderr
    return out


def _kit(package: Path, system: str, edgec: Run, tmp_path: Path, *more: str) -> Path:
    out = tmp_path / f"kit-{package.parent.name}-{package.name}-{system}"
    done = edgec("kit", package, "--for", system, "-o", out, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _picture(size: tuple[int, int] = (48, 40), kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(made, kind)
    return made.getvalue()


def _labels(package: Package, picture: bytes, tmp_path: Path) -> list[tuple[str, float]]:
    (tmp_path / "picture").write_bytes(picture)
    return classify(package, open_session(package, 1), picture_inputs(package, tmp_path / "picture"))[:5]


@pytest.mark.parametrize(
    "name", ["vit-out/onnx-fp32", "vit-out/tflite-fp32", "vit-out/neo-fp32-x86-64-v3", "resnet-out/neo-fp32-x86-64-v3"]
)
def test_a_picture_has_the_packages_labels(name: str, built: Path, edgec: Run, edgec_here: Run, tmp_path: Path) -> None:
    kit = _kit(built / name, "sagemaker", edgec_here, tmp_path)
    assert "--data-binary" not in (kit / "README.md").read_text() and "image/jpeg" in (kit / "README.md").read_text()
    folder = model_folder(kit, tmp_path)
    picture = _picture()
    good, nonsense, other, nothing, nested = by_djl(
        folder,
        [
            json.dumps({"inputs": base64.b64encode(picture).decode()}),
            json.dumps({"inputs": base64.b64encode(b"no picture").decode()}),
            '{"inputs": "*"}',
            "{}",
            "[" * 100_000,
        ],
    )
    assert good[0] == 200, good[2]
    found = [(each["label"], each["score"]) for each in json.loads(good[2])]
    wanted = _labels(read_package(built / name), picture, tmp_path)
    assert [label for label, _ in found] == [label for label, _ in wanted]
    np.testing.assert_allclose([score for _, score in found], [share for _, share in wanted], atol=1e-4)
    assert [each[0] for each in (nonsense, other, nothing, nested)] == [400] * 4
    assert "no picture that Pillow reads" in nonsense[2] and "no base64" in other[2] and "nested too deep" in nested[2]


def test_a_component_takes_a_picture_as_it_is(built: Path, edgec_here: Run, tmp_path: Path) -> None:
    kit = _kit(built / "vit-out" / "onnx-fp32", "greengrass", edgec_here, tmp_path)
    folder = component_folder(kit, tmp_path)
    port = free_port()
    command = [sys.executable, str(folder / "serve.py")]
    server = subprocess.Popen(command, env={**os.environ, "PORT": str(port)}, stderr=subprocess.DEVNULL)

    def post(data: bytes, kind: str) -> tuple[int, Any]:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    try:
        wait_for(f"http://127.0.0.1:{port}/ping")
        picture = _picture(kind="JPEG")
        status, found = post(picture, "image/jpeg")
        assert status == 200
        wanted = _labels(read_package(built / "vit-out" / "onnx-fp32"), picture, tmp_path)
        assert [each["label"] for each in found] == [label for label, _ in wanted]
        assert (
            post(b"x", "text/csv")[0]
            == post(b"x", "image/png")[0]
            == post(b"[" * 100_000, "application/json")[0]
            == 400
        )
    finally:
        server.kill()
        server.wait()


def test_masks_are_filled_as_transformers_fills_them(built: Path, edgec_here: Run, tmp_path: Path) -> None:
    from transformers import pipeline

    folder = model_folder(_kit(built / "bert-mask-out" / "onnx-fp32", "sagemaker", edgec_here, tmp_path), tmp_path)
    texts = ["The sea is [MASK].", "A [MASK] in the [MASK]"]
    good, without = by_djl(folder, [json.dumps({"inputs": texts}), '{"inputs": "The sea."}'])
    assert good[0] == 200, good[2]
    reference = pipeline("fill-mask", model=str(built / "bert-mask"), top_k=5)
    for found, wanted in zip(json.loads(good[2]), reference(texts), strict=True):
        for rows, expected in zip(_as_lists(found), _as_lists(wanted), strict=True):
            assert [each["token"] for each in rows] == [each["token"] for each in expected]
            assert [each["sequence"] for each in rows] == [each["sequence"] for each in expected]
            np.testing.assert_allclose(
                [each["score"] for each in rows], [each["score"] for each in expected], rtol=1e-3
            )
    assert without[0] == 400 and "[MASK]" in without[2]


def _as_lists(found: list[Any]) -> list[list[Any]]:
    return [found] if isinstance(found[0], dict) else found


def _finished(package: Path, compiled: Callable[[Path], object], tmp_path: Path) -> Path:
    """The package as finishing leaves it; `compiled` writes what Neo gave back."""
    folder = tmp_path / "finished" / package.name
    shutil.copytree(package, folder)
    read = read_package(folder)
    job = json.loads((folder / "job.json").read_text())
    asked = CompilationJob(job["framework"], job["version"], job["inputs"], device=job["device"])

    def finish(own: Path, _: Package, tell: Any) -> Finished:
        (own / "compiled").mkdir()
        compiled(own / "compiled")
        return Finished({"sagemaker-neo": "2.0"}, with_compiled(read.lowered, own / "compiled", asked))

    globals()["finish_of_neo"] = finish
    finish_in_place(read, replace(TARGET, finish=f"{__name__}:finish_of_neo"), lambda done, total: None)
    return folder


@pytest.mark.parametrize("name", ["bert-out/neo-fp32-ml_c5", "vit-out/neo-fp32-ml_c5", "resnet-out/neo-fp32-ml_g4dn"])
def test_what_neo_compiled_of_pytorchs_is_served(
    name: str, built: Path, edgec_here: Run, tmp_path: Path, minilm_folder: Path
) -> None:
    """What Neo gives back is TorchScript, for which the container's neopytorch has a library; what was sent stands for it."""
    folder = _finished(built / name, lambda out: bool(extract(built / name / NAME, out)), tmp_path)
    kit = _kit(folder, "sagemaker", edgec_here, tmp_path, "--trust")
    deploy = runpy.run_path(str(kit / "deploy.py"))
    processor = "gpu" if "g4dn" in name else "cpu"
    wanted_image = f"785573368785.dkr.ecr.us-east-1.amazonaws.com/sagemaker-inference-pytorch:2.0-{processor}-py3"
    assert deploy["image_of"]("us-east-1") == wanted_image
    with pytest.raises(SystemExit, match="no account"):
        deploy["image_of"]("mars-1")
    served = model_folder(kit, tmp_path)
    (served / "neopytorch.py").write_text("asked = []\ndef config(**given):\n    asked.append(given)\n")
    assert "torch" not in (served / "code" / "requirements.txt").read_text().split()
    package = read_package(folder)
    if "bert" in name:
        (vectors,) = by_the_toolkit(served, {"inputs": "The tide was out."})
        ids = text_arrays(require_tokenizer(package).encode("The tide was out.").ids)
        from compiler.pretrained import load_encoder

        encoder = load_encoder(built / "bert", "feature-extraction")
        import torch

        wanted = encoder.module(*(torch.from_numpy(ids[each]) for each in encoder.input_names))
        np.testing.assert_allclose(vectors, np.asarray(wanted[0][0].detach()), atol=1e-4)
        return
    picture = _picture()
    found = by_the_toolkit(served, {"inputs": base64.b64encode(picture).decode()})
    wanted_labels = _labels(read_package(built / name.partition("/")[0] / "neo-fp32-x86-64-v3"), picture, tmp_path)
    assert [each["label"] for each in found] == [label for label, _ in wanted_labels]


def test_what_neo_compiled_for_a_board_is_a_component(built: Path, edgec: Run, edgec_here: Run, tmp_path: Path) -> None:
    def compiled(out: Path) -> None:
        (out / "compiled.so").write_bytes(ELF[:18] + b"\xb7\0" + b"\0" * 40)
        (out / "compiled_model.json").write_text("{}")
        (out / "compiled.params").write_bytes(b"p")
        (out / "compiled.meta").write_text(json.dumps({"Requirements": {"TargetDeviceType": "OPENCL"}}))

    folder = _finished(built / "resnet-out" / "neo-fp32-rasp4b", compiled, tmp_path)
    kit = _kit(folder, "greengrass", edgec_here, tmp_path, "--trust")
    (manifest,) = json.loads((kit / "recipe.json").read_text())["Manifests"]
    assert manifest["Platform"] == {"os": "linux", "architecture": "aarch64"}
    assert "neo-ai-dlr" in (kit / "README.md").read_text()
    component = component_folder(kit, tmp_path)
    assert {"compiled.so", "compiled_model.json", "compiled.params", "compiled.meta"} <= {
        each.name for each in component.iterdir()
    }
    assert "dlr" in (component / "code" / "requirements.txt").read_text().split()
    count = len(json.loads((component / "config.json").read_text())["id2label"])
    (component / "code" / "dlr.py").write_text(
        "import numpy as np\nclass DLRModel:\n"
        "    def __init__(self, folder, device): assert device == 'opencl'\n"
        "    def run(self, inputs): return [np.arange(float(COUNT))[None] + inputs['pixel_values'].mean() * 0]\n".replace(
            "COUNT", str(count)
        )
    )
    found = by_the_toolkit(component, {"inputs": base64.b64encode(_picture()).decode()})
    assert found == sorted(found, key=lambda each: -each["score"]) and len(found) == min(count, 5)
    refused = edgec("kit", folder, "--for", "sagemaker", "-o", tmp_path / "no", "--trust")
    assert_refused(refused, 2, "is for aarch64", "runs on x86-64")


def test_what_is_unfinished_or_lacks_its_image_processor_is_refused(built: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("kit", built / "bert-out" / "neo-fp32-ml_c5", "--for", "sagemaker", "-o", tmp_path / "out")
    assert_refused(done, 2, "is unfinished", "SageMaker Neo")
    shutil.copytree(built / "vit", tmp_path / "bare")
    (tmp_path / "bare" / "preprocessor_config.json").unlink()
    assert edgec("build", tmp_path / "bare", "-r", "onnx:fp32", "-o", tmp_path / "p").returncode == 0
    done = edgec("kit", tmp_path / "p" / "onnx-fp32", "--for", "sagemaker", "-o", tmp_path / "out")
    assert_refused(done, 2, "has no preprocessor_config.json")
