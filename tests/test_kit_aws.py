"""Kits for AWS: the handler run by SageMaker's own toolkit in a container's layout, the script under moto, the server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tiny
from botocore.exceptions import WaiterError
from conftest import Run, assert_refused
from kit_container import DJL, REAL_DJL, by_djl, by_the_toolkit, component_folder, free_port, model_folder, wait_for
from moto import mock_aws
from moto.backends import get_backend

from compiler.model import Model
from compiler.package import read_package
from runtimes.kinds.encoding.inputs import require_tokenizer, text_arrays
from runtimes.kinds.encoding.use import answer, classify, embed, label_tokens
from runtimes.registry import open_session

_RECIPE = {
    "RecipeFormatVersion", "ComponentName", "ComponentVersion", "ComponentDescription", "ComponentPublisher",
    "ComponentConfiguration", "ComponentType", "ComponentSource", "ComponentDependencies", "Lifecycle", "Manifests",
}  # fmt: skip
_KINDS = ("onnx-fp32", "tflite-fp32", "neo-fp32-x86-64-v3")


@pytest.fixture(scope="module")
def built(smollm2: Model, minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    classifier = tiny.save_encoder("bert-classify", minilm_folder, out / "classifier")
    named = {kind: tiny.save_encoder(f"bert-{kind}", minilm_folder, out / kind) for kind in ("tokens", "answers")}
    llama = tiny.save_decoder("llama", smollm2.folder, out / "llama")
    options = ("--sequence-length", 32, "-o")
    encoders = ("onnx:fp32", "tflite:fp32", "neo:fp32@x86-64-v3", "neo:fp32@local", "neuron:fp32")
    for model, recipes in (
        (bert, encoders),
        (classifier, ("onnx:fp32",)),
        *((each, ("onnx:fp32",)) for each in named.values()),
        (llama, ("gguf:F16", "onnx:int8")),
    ):
        words = [word for recipe in recipes for word in ("-r", recipe)]
        done = edgec_here("build", model, *words, *options, out / f"{model.name}-out")
        assert done.returncode == 0, done.stdout + done.stderr
    for folder in (
        *(out / "bert-out" / kind for kind in _KINDS),
        *(out / f"{name}-out" / "onnx-fp32" for name in ("classifier", "tokens", "answers")),
        out / "llama-out" / "gguf-F16",
        out / "llama-out" / "onnx-int8",
    ):
        for system in ("sagemaker", "greengrass"):
            done = edgec_here(
                "kit", folder, "--for", system, "-o", out / f"{folder.parent.name}-{folder.name}-{system}"
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("kind", _KINDS)
def test_sagemakers_toolkit_gives_the_packages_vectors(kind: str, built: Path, tmp_path: Path) -> None:
    pytest.importorskip("sagemaker_inference")
    folder = model_folder(built / f"bert-out-{kind}-sagemaker", tmp_path)
    found = by_the_toolkit(folder, {"inputs": ["The tide was out.", "Hello"]})
    package = read_package(built / "bert-out" / kind)
    session = open_session(package, 1)
    for text, vectors in zip(("The tide was out.", "Hello"), found, strict=True):
        wanted = embed(package, session, text, lambda note: None)
        got = np.asarray(vectors)
        mean = got if got.ndim == 1 else got.mean(0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), wanted / np.linalg.norm(wanted), atol=1e-4)


def test_labels_and_texts(built: Path, tmp_path: Path) -> None:
    pytest.importorskip("sagemaker_inference")
    folder = model_folder(built / "classifier-out-onnx-fp32-sagemaker", tmp_path / "labels")
    (scores,) = by_the_toolkit(folder, {"inputs": "Good"})
    package = read_package(built / "classifier-out" / "onnx-fp32")
    ids = text_arrays(require_tokenizer(package).encode("Good").ids)
    wanted = classify(package, open_session(package, 1), ids)
    assert [each["label"] for each in scores] == [label for label, _ in wanted]
    np.testing.assert_allclose([each["score"] for each in scores], [share for _, share in wanted], atol=1e-4)
    assert len(scores) == 3 and abs(sum(each["score"] for each in scores) - 1) < 1e-5
    assert scores == sorted(scores, key=lambda each: -each["score"])
    folder = component_folder(built / "llama-out-gguf-F16-greengrass", tmp_path / "texts")
    (made,) = by_the_toolkit(folder, {"inputs": "The tide", "parameters": {"max_new_tokens": 4}})
    assert isinstance(made["generated_text"], str)
    chat = by_the_toolkit(folder, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})
    assert chat["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize("script", [DJL, REAL_DJL], ids=["stand-in", "djl_python"])
def test_djl_servings_layout_gives_the_packages_labels(script: str, built: Path, tmp_path: Path) -> None:
    """The stand-in always; DJL's own Python, which is on no index, where PYTHONPATH has it."""
    if script is REAL_DJL:
        pytest.importorskip("djl_python")
    folder = model_folder(built / "classifier-out-onnx-fp32-sagemaker", tmp_path)
    told = dict(line.split("=") for line in (folder / "serving.properties").read_text().splitlines())
    assert told["engine"] == "Python" and (folder / told["option.entryPoint"]).is_file()
    assert told["minWorkers"] == told["maxWorkers"] == "1"
    assert (folder / "requirements.txt").read_text() == (folder / "code" / "requirements.txt").read_text()
    good, empty, nonsense, other = by_djl(folder, ['{"inputs": "Good"}', "", "[no json", '{"inputs": 3}'], script)
    package = read_package(built / "classifier-out" / "onnx-fp32")
    ids = text_arrays(require_tokenizer(package).encode("Good").ids)
    wanted = classify(package, open_session(package, 1), ids)
    assert good[:2] == (200, "application/json")
    assert [each["label"] for each in json.loads(good[2])[0]] == [label for label, _ in wanted]
    assert [empty[0], nonsense[0], other[0]] == [400, 400, 400] and "Send inputs" in other[2]


def test_tokens_and_answers_are_those_of_the_package(built: Path, tmp_path: Path) -> None:
    text, question = "The tide was out in Bergen.", "Where was it?"
    folder = model_folder(built / "tokens-out-onnx-fp32-sagemaker", tmp_path / "tokens")
    (made,) = by_djl(folder, [json.dumps({"inputs": text})])
    package = read_package(built / "tokens-out" / "onnx-fp32")
    wanted = label_tokens(package, open_session(package, 1), text, lambda note: None)
    assert made[0] == 200
    (found,) = json.loads(made[2])
    assert [(each["index"], each["entity"]) for each in found] == [
        (place, label) for place, (_, label) in enumerate(wanted) if 0 < place < len(wanted) - 1
    ]
    assert all(text[each["start"] : each["end"]] == each["word"] and 0 < each["score"] <= 1 for each in found)
    folder = model_folder(built / "answers-out-onnx-fp32-sagemaker", tmp_path / "answers")
    asked = {"inputs": {"question": question, "context": text}}
    pairs = [{"question": "a " * 600, "context": text}, {"question": question, "context": "  "}]
    made, wrong, long, empty, nested = by_djl(
        folder,
        [json.dumps(asked), '{"inputs": "x"}', *(json.dumps({"inputs": each}) for each in pairs), "[" * 100_000],
    )
    package = read_package(built / "answers-out" / "onnx-fp32")
    best = answer(package, open_session(package, 1), question, text, lambda note: None)
    (span,) = json.loads(made[2])
    assert (span["answer"], text[span["start"] : span["end"]]) == (best.text, best.text)
    assert span["score"] == pytest.approx(best.probability, rel=1e-3)
    assert [empty[0], nested[0]] == [400, 400] and "nested too deep" in nested[2]
    assert (wrong[0], long[0]) == (400, 400) and "a question and a context" in wrong[2] and "no room" in long[2]


def test_genai_writes_what_the_package_writes(built: Path, tmp_path: Path) -> None:
    folder = model_folder(built / "llama-out-onnx-int8-sagemaker", tmp_path / "djl")
    asked = {"inputs": "The tide was", "parameters": {"max_new_tokens": 6}}
    made, *wrong, chat, long = by_djl(
        folder,
        [
            json.dumps(asked),
            '{"inputs": "a", "parameters": null}',
            '{"inputs": 3}',
            '{"messages": "a"}',
            json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}),
            json.dumps({"inputs": "a " * 5000}),
        ],
    )
    assert made[0] == chat[0] == 200, made[2] + chat[2]
    assert [each[0] for each in wrong] == [400, 400, 400]
    assert json.loads(chat[2])["choices"][0]["message"]["role"] == "assistant"
    assert long[0] == 400 and "tokens" in long[2]
    package = read_package(built / "llama-out" / "onnx-int8")
    session = open_session(package, 1)
    prompt = [*session.text.begin, *session.text.encode("The tide was")]
    session.reset()
    logits = session.extend(prompt)
    tokens: list[int] = []
    while len(tokens) < 6 and int(logits.argmax()) not in session.text.ends:
        tokens.append(int(logits.argmax()))
        logits = session.extend((tokens[-1],))
    (told,) = json.loads(made[2])
    assert told["generated_text"] == session.text.decode(tokens)
    component = component_folder(built / "llama-out-onnx-int8-greengrass", tmp_path / "component")
    assert (component / "genai" / "genai_config.json").is_file()


def test_llamacpps_server_serves_the_archive_of_a_language_model(built: Path, tmp_path: Path) -> None:
    """AWS's container finds the GGUF file in /opt/ml/model and hands /invocations to the server's chats."""
    kit = built / "llama-out-gguf-F16-sagemaker"
    folder = model_folder(kit, tmp_path)
    (file,) = folder.rglob("*")
    assert file.suffix == ".gguf"
    deploy = runpy.run_path(str(kit / "deploy.py"))
    assert "/llama-cpp:server-sagemaker-cpu" in deploy["image_of"]("eu-west-1")
    context, port = int(deploy["ENVIRONMENT"]["SM_LLAMA_CPP_CTX_SIZE"]), free_port()
    command = [sys.executable, "-P", "-m", "llama_cpp.server", "--model", str(file), "--n_ctx", str(context)]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}).encode()
        status, told = _post(port, body, "/v1/chat/completions")
        assert status == 200 and json.loads(told)["choices"][0]["message"]["role"] == "assistant"
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("data", "kind"), [(b"[]", "application/json"), (b"{}", "application/json"), (b"x", "text/csv")]
)
def test_a_request_of_another_form_is_refused(data: bytes, kind: str, built: Path, tmp_path: Path) -> None:
    folder = component_folder(built / "llama-out-gguf-F16-greengrass", tmp_path)
    spec = importlib.util.spec_from_file_location("handler", folder / "code" / "inference.py")
    assert spec is not None and spec.loader is not None
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    with pytest.raises(ValueError, match=r"Send inputs|is not taken"):
        handler.input_fn(data, kind)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="models")
        yield


def test_the_script_deploys_and_takes_away(built: Path, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = built / "bert-out-onnx-fp32-sagemaker"
    role = "arn:aws:iam::123456789012:role/sagemaker"

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["deploy.py", *words])
        runpy.run_path(str(kit / "deploy.py"), run_name="__main__")

    run("--bucket", "models", "--role", role)
    service = boto3.client("sagemaker")
    (endpoint,) = service.list_endpoints()["Endpoints"]
    assert endpoint["EndpointName"] == "bert-onnx-fp32" and endpoint["EndpointStatus"] == "InService"
    container = service.describe_model(ModelName="bert-onnx-fp32")["PrimaryContainer"]
    assert container["ModelDataUrl"] == "s3://models/edgec/bert-onnx-fp32/model.tar.gz"
    assert container["Image"].startswith("763104351884.dkr.ecr.us-east-1.amazonaws.com/djl-inference:")
    assert set(container["Environment"]) == {"OPTION_MODEL_LOADING_TIMEOUT", "OPTION_PREDICT_TIMEOUT"}
    run("--delete")
    assert not service.list_endpoints()["Endpoints"] and not service.list_models()["Models"]
    run("--delete")
    with pytest.raises(SystemExit):
        run("--bucket", "models")
    with pytest.raises(SystemExit, match="AWS could not be asked"):
        run("--bucket", "nowhere", "--role", role)
    with pytest.raises(SystemExit, match="AWS refused CreateEndpoint"):
        run("--bucket", "models", "--role", role, "--instance", "ml.of.none")


def test_the_script_says_why_an_endpoint_does_not_serve(
    built: Path, aws: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = runpy.run_path(str(built / "bert-out-onnx-fp32-sagemaker" / "deploy.py"))
    assert script["image_of"]("cn-north-1").startswith(
        "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/djl-inference:"
    )
    assert script["image_of"]("eu-west-1").startswith("763104351884.dkr.ecr.eu-west-1.amazonaws.com/djl-inference:")

    class Waiter:
        def wait(self, **given: str) -> None:
            endpoints = get_backend("sagemaker")["123456789012"]["us-east-1"].endpoints
            (endpoint,) = endpoints.values()
            endpoint.endpoint_status = "Failed"
            vars(endpoint)["failure_reason"] = "The container did not answer /ping."
            raise WaiterError("endpoint_in_service", "it failed", {})

    session = boto3.session.Session()
    real = session.client

    def client(name: str) -> Any:
        made = real(name)
        if name == "sagemaker":
            made.get_waiter = lambda _: Waiter()
        return made

    monkeypatch.setattr(session, "client", client)
    role = "arn:aws:iam::123456789012:role/sagemaker"
    with pytest.raises(SystemExit, match=r"does not serve \(Failed\): The container did not answer"):
        script["deploy"](session, "models", role, "a", "image", "ml.c5.xlarge")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(sys, "argv", ["deploy.py", "--delete"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(built / "bert-out-onnx-fp32-sagemaker" / "deploy.py"), run_name="__main__")
    assert "no AWS credentials" in capsys.readouterr().err


def _post(port: int, body: bytes, path: str = "/invocations") -> tuple[int, bytes]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_component_serves_from_its_archive(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built / "bert-out-onnx-fp32-greengrass" / "component.zip") as archive:
        archive.extractall(tmp_path / "component")
    port = free_port()
    command = [sys.executable, str(tmp_path / "component" / "serve.py")]
    server = subprocess.Popen(command, env={**os.environ, "PORT": str(port)}, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping")
        status, body = _post(port, json.dumps({"inputs": "Hello"}).encode())
        assert status == 200 and len(json.loads(body)) == 1
        assert _post(port, b"no json")[0] == 400 and _post(port, b"{}")[0] == 400
    finally:
        server.kill()
        server.wait()


def test_a_components_recipe_is_of_greengrasss_form(built: Path) -> None:
    for name in ("bert-out-onnx-fp32", "bert-out-neo-fp32-x86-64-v3", "llama-out-gguf-F16"):
        kit = built / f"{name}-greengrass"
        recipe = json.loads((kit / "recipe.json").read_text())
        assert recipe["RecipeFormatVersion"] == "2020-01-25" and len((kit / "recipe.json").read_bytes()) < 16000
        # recipe_schema.json of aws-greengrass-gdk-cli takes these alone, whatever their case.
        assert set(recipe) <= _RECIPE and set(recipe) >= {"ComponentName", "ComponentVersion", "Manifests"}
        assert re.fullmatch(r"[a-zA-Z0-9._-]{1,128}", recipe["ComponentName"])
        (manifest,) = recipe["Manifests"]
        assert set(manifest) <= {"Name", "Platform", "Lifecycle", "Selections", "Artifacts"}
        for step in ("Install", "Run"):
            assert set(manifest["Lifecycle"][step]) <= {"Script", "SkipIf", "RequiresPrivilege", "Setenv", "Timeout"}
        assert set(manifest["Artifacts"][0]) <= {"URI", "Unarchive", "Permission", "Digest", "Algorithm"}
        readme = (kit / "README.md").read_text()
        assert "create-deployment" in readme and ("cmake" in readme) == ("llama" in name)
        (artifact,) = manifest["Artifacts"]
        assert artifact["Unarchive"] == "ZIP" and artifact["URI"].endswith("/component.zip")
        assert set(manifest["Lifecycle"]) == {"Setenv", "Install", "Run"}
        expected = {"os": "linux", "architecture": "amd64"} if "neo" in name else {"os": "linux"}
        assert manifest["Platform"] == expected
        with zipfile.ZipFile(kit / "component.zip") as archive:
            assert {"serve.py", "code/inference.py", "code/requirements.txt"} <= set(archive.namelist())


def test_two_kits_have_the_same_bytes(built: Path, edgec_here: Run, tmp_path: Path) -> None:
    for system in ("sagemaker", "greengrass"):
        done = edgec_here("kit", built / "bert-out" / "onnx-fp32", "--for", system, "-o", tmp_path / system)
        assert done.returncode == 0, done.stderr
        first = built / f"bert-out-onnx-fp32-{system}"
        for path in first.iterdir():
            assert path.read_bytes() == (tmp_path / system / path.name).read_bytes()


def test_what_a_kit_does_not_serve_is_refused(built: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("kit", built / "bert-out" / "neuron-fp32", "--for", "sagemaker", "-o", tmp_path / "out")
    assert_refused(done, 2, "neuron:fp32")
    done = edgec("kit", built / "bert-out" / "neo-fp32-local", "--for", "sagemaker", "-o", tmp_path / "out")
    assert_refused(done, 2, "neo:fp32@x86-64-v3", "lack its instructions")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
