"""SageMaker Neo: jobs held to Neo's tables before they are sent, run under moto, and what comes back looked at."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tiny
import torch
from botocore.awsrequest import AWSResponse
from conftest import Run, assert_refused
from moto import mock_aws
from moto.backends import get_backend

import edgec
from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.formats.archive import write_tar
from compiler.package import check_files, read_package
from targets.neo.cloud import drive
from targets.neo.cloud.archive import NAME, extract, find_layout_faults, list_members, read_member
from targets.neo.cloud.choice import VARIANTS
from targets.neo.cloud.job import CompilationJob, TargetPlatform, find_faults, find_request_faults, request
from targets.neo.cloud.result import find_result_faults
from targets.neo.cloud.tables import DEVICES, PLATFORMS

_ACCOUNT, _REGION = "123456789012", "us-east-1"
_ROLE = f"arn:aws:iam::{_ACCOUNT}:role/neo"
_TEXT = {"attention_mask": (1, 32), "input_ids": (1, 32), "token_type_ids": (1, 32)}
_JOB = CompilationJob("PYTORCH", "2.0", _TEXT, device="ml_c5", options={"dtype": "int64"})
_ELF = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HH", 3, 62)


@pytest.fixture(scope="module")
def built(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neo-cloud")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    vit = tiny.save_encoder("vit", minilm_folder, out / "vit")
    for model in (bert, vit):
        options = ("--sequence-length", 32, "-o", out / f"{model.name}-out")
        done = edgec_here("build", model, "-r", "neo:fp32@ml_c5", *options)
        assert done.returncode == 0, done.stdout + done.stderr
    resnet = tiny.save_resnet(out / "resnet")
    done = edgec_here(
        "build", resnet, "-r", "neo:fp32@rasp4b", "-r", "neo:fp32@linux-arm64-mali", "-o", out / "resnet-out"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "ml_c5", "platform": TargetPlatform("LINUX", "ARM64")}, "exclude each other"),
        ({"device": None}, "exclude each other"),
        ({"device": "raspberry"}, "no TargetDevice"),
        ({"device": "ml_inf2"}, "publishes no frameworks"),
        ({"device": None, "platform": TargetPlatform("ANDROID", "ARM_EABIHF")}, "does not go with ARM_EABIHF"),
        ({"device": None, "platform": TargetPlatform("ANDROID", "ARM64", "NVIDIA")}, "Neo has nothing for it"),
        ({"device": None, "platform": TargetPlatform("WINDOWS", "X86_64")}, "no Os"),
        ({"device": None, "platform": TargetPlatform("LINUX", "ARM64", "NVIDIA")}, "gpu-code, trt-ver, cuda-ver"),
        ({"framework": "JAX"}, "no framework"),
        ({"device": "rasp4b"}, "takes PYTORCH 1.7, 1.8, not 2.0"),
        ({"device": "amba_cv2", "version": "1.8"}, "takes no FrameworkVersion"),
        ({"device": "ml_inf1", "framework": "TFLITE", "version": None}, "takes no TFLITE"),
        ({"version": "2"}, "no FrameworkVersion"),
        ({"inputs": {}}, "names no input"),
        ({"inputs": {"input_ids": (1, -1)}}, "none free"),
        ({"inputs": {"input_ids": (1, 0)}}, "none free"),
        ({"inputs": {"input_ids": (1, 8), "attention_mask": (1, 8)}}, "order of their names"),
        ({"inputs": {"pixel_values": (1, 224, 224, 3)}}, "batch, channels, height, width"),
        ({"inputs": {f"i{n:05}": (1, 8) for n in range(1200)}}, "16384 is the most"),
        ({"options": {}}, "3 to 1024"),
        ({"options": {"dtype": "int8"}}, "none of float"),
        ({"options": {"ANDROID_PLATFORM": 33}}, "21 to 29"),
    ],
)  # fmt: skip
def test_a_job_that_neo_would_refuse_says_why(changes: Mapping[str, Any], words: str) -> None:
    assert any(words in fault for fault in find_faults(replace(_JOB, **changes)))


def test_a_good_job_has_no_fault() -> None:
    assert not list(find_faults(_JOB, tuple(_TEXT)))
    for (system, accelerator), architectures in PLATFORMS.items():
        options = {"gpu-code": "sm_62", "trt-ver": "6.0.1", "cuda-ver": "10.0"} if accelerator == "NVIDIA" else None
        for architecture in architectures:
            platform = TargetPlatform(system, architecture, accelerator)
            job = CompilationJob("ONNX", None, {"x": (1, 3, 8, 8)}, platform=platform, options=options)
            assert not list(find_faults(job))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"attention_mask": (1, 32), "ids": (1, 32)}, "has the input input_ids, and DataInputConfig does not name it"),
        ({**_TEXT, "zebra": (1, 2)}, "names the input zebra, which the model has not"),
    ],
)
def test_names_are_held_to_the_models(inputs: dict[str, tuple[int, ...]], words: str) -> None:
    assert any(words in fault for fault in find_faults(replace(_JOB, inputs=inputs), tuple(_TEXT)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-a", _ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60), "job's name"),
        (("a" * 64, _ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60), "job's name"),
        (("a", "neo-role", "s3://bucket/m.tar.gz", "s3://bucket/out", 60), "no ARN"),
        (("a", _ROLE, "/tmp/m.tar.gz", "s3://bucket/out", 60), "none in S3"),
        (("a", _ROLE, "s3://bucket/m.zip", "s3://bucket/out", 60), "end in .tar.gz"),
        (("a", _ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 0), "at least a second"),
    ],
)
def test_a_run_that_aws_would_refuse_says_why(arguments: tuple[str, str, str, str, int], words: str) -> None:
    assert any(words in fault for fault in find_request_faults(*arguments))
    assert not list(find_request_faults("a-b", _ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60))


def test_the_request_is_of_the_form_that_botocore_knows() -> None:
    service = boto3.client("sagemaker", region_name=_REGION, aws_access_key_id="a", aws_secret_access_key="b")
    model = service.meta.service_model.operation_model("CreateCompilationJob").input_shape
    asked = request(_JOB, "a", _ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60)
    from botocore.validate import ParamValidator

    assert not ParamValidator().validate(asked, model).has_errors()
    assert json.loads(asked["InputConfig"]["DataInputConfig"]) == {name: list(shape) for name, shape in _TEXT.items()}
    known = service.meta.service_model.shape_for("TargetDevice").enum
    assert {device.name for device in DEVICES} <= set(known)


@pytest.mark.parametrize(
    ("framework", "names", "words"),
    [
        ("PYTORCH", ["model.pt"], "no .pth file"),
        ("PYTORCH", ["a.pth", "b.pth"], "2 .pth files"),
        ("PYTORCH", [".model.pth"], "no file that Neo sees"),
        ("ONNX", ["m/model.onnx", "model.onnx"], "2 .onnx files"),
        ("MXNET", ["m-symbol.json"], "no .params file"),
        ("TENSORFLOW", ["checkpoint", "m.pb"], "checkpoint"),
        ("DARKNET", ["a.cfg"], "no .weights file"),
    ],
)
def test_an_archive_of_another_layout_is_told(framework: str, names: list[str], words: str) -> None:
    assert any(words in fault for fault in find_layout_faults(framework, names))


def test_archives_are_the_same_bytes_and_are_read_with_limits(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x" * 1000)
    for name in ("a.tar.gz", "b.tar.gz"):
        write_tar(tmp_path / name, [("model.pth", tmp_path / "model.pth")])
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    assert list_members(tmp_path / "a.tar.gz") == {"model.pth": 1000}
    with pytest.raises(UnusableInput, match="1000 bytes"):
        read_member(tmp_path / "a.tar.gz", "model.pth", 10)


def _archive(file: Path, members: Mapping[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(data))
    return file


@pytest.mark.parametrize("name", ["../evil.so", "/etc/evil", "a/../../b", "a\\..\\b"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="leaves its folder"):
        extract(_archive(tmp_path / "x.tar.gz", {name: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_with_links_or_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="no plain file"):
        list_members(_archive(tmp_path / "x.tar.gz", {"a.so": b""}, tarfile.SYMTYPE))
    for data in (
        b"",
        b"no archive",
        gzip.compress(b"no tar" * 500),
        _archive(tmp_path / "y", {"a": b"x" * 9000}).read_bytes()[:60],
    ):
        (tmp_path / "z.tar.gz").write_bytes(data)
        if data:
            with pytest.raises(UnusableInput, match="no whole"):
                list_members(tmp_path / "z.tar.gz")


def test_what_is_sent_computes_what_the_model_computes(built: Path, tmp_path: Path) -> None:
    """Inputs come in the order of their names, as Neo's reader gives them."""
    extract(built / "bert-out" / "neo-fp32-ml_c5" / NAME, tmp_path)
    raw = (tmp_path / "model.pth").read_bytes()
    assert b"debug_pkl" not in raw and str(Path(__file__).parent.parent).encode() not in raw
    traced = torch.jit.load(str(tmp_path / "model.pth"))
    from compiler.pretrained import load_encoder

    encoder = load_encoder(built / "bert", "feature-extraction")
    ids = torch.arange(10, 42)[None]
    mask, segments = torch.ones_like(ids), torch.zeros_like(ids)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    with torch.inference_mode():
        found = traced(*(given[name] for name in sorted(given)))
        wanted = encoder.module(*(given[name] for name in encoder.input_names))
    found, wanted = (each[0] if isinstance(each, tuple) else each for each in (found, wanted))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_pictures_for_boards_are_onnx_of_1_7(built: Path, tmp_path: Path) -> None:
    import onnx

    for name in ("neo-fp32-rasp4b", "neo-fp32-linux-arm64-mali"):
        extract(built / "resnet-out" / name / NAME, tmp_path / name)
        document = onnx.load(str(tmp_path / name / "model.onnx"))
        assert document.ir_version == 7 and max(each.version for each in document.opset_import) == 12
    job = json.loads((built / "resnet-out" / "neo-fp32-linux-arm64-mali" / "job.json").read_text())
    assert (
        job["platform"] == {"system": "LINUX", "architecture": "ARM64", "accelerator": "MALI"} and job["device"] is None
    )


@pytest.mark.parametrize(
    ("model", "recipe", "words"),
    [
        ("bert", "neo:fp32@rasp4b", ("Hugging Face", "@ml_c5", "@local")),
        ("vit", "neo:fp32@jetson_nano", ("Vision Transformer", "@ml_c5")),
        ("bert", "neo:fp16@ml_c5", ("neo:fp32@ml_c5",)),
        ("bert", "neo:fp32@ml_inf2", ("no variant @ml_inf2",)),
    ],
)
def test_what_neos_tables_leave_out_is_refused_before_any_work(
    model: str, recipe: str, words: tuple[str, ...], built: Path, edgec: Run, tmp_path: Path
) -> None:
    assert_refused(edgec("build", built / model, "-r", recipe, "-o", tmp_path), 2, *words)
    assert "rasp4b" in VARIANTS


def test_it_is_unfinished_until_neo_has_compiled_it(built: Path, edgec: Run) -> None:
    assert_refused(edgec("verify", built / "bert-out" / "neo-fp32-ml_c5"), 2, "unfinished", "SageMaker Neo")


# The whole way under moto.


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "tEsTiNg-9f8e7d", "AWS_DEFAULT_REGION": _REGION,
        "EDGEC_S3": "s3://models/edgec", "EDGEC_SAGEMAKER_ROLE": _ROLE, drive.POLL: "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with mock_aws():
        storage = boto3.client("s3")
        storage.create_bucket(Bucket="models")
        yield storage


def _compiled(machine: int = 62, others: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    library = _ELF[:18] + struct.pack("<H", machine) + b"\0" * 40
    meta = {
        "Model": {"Inputs": [{"name": name, "dtype": "int64", "shape": list(shape)} for name, shape in _TEXT.items()]}
    }
    return {
        "compiled.so": library, "compiled_model.json": b"{}", "compiled.params": b"p",
        "compiled.meta": json.dumps(meta).encode(), "libdlr.so": library, "manifest": b"m", **(others or {}),
    }  # fmt: skip


def _meta(name: str, length: int) -> bytes:
    return json.dumps({"Model": {"Inputs": [{"name": name, "shape": [1, length]}]}}).encode()


def _neo_gives(members: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, storage: Any) -> None:
    """What moto leaves out: the compiled archive in S3, when the job is asked about."""
    real = drive._wait

    def wait(service: Any, name: str, settings: Any, on_progress: Any) -> Any:
        told = dict(real(service, name, settings, on_progress))
        archive = _archive(tmp_path / "neo.tar.gz", members)
        key = f"edgec/{name}/out/model-ml_c5.tar.gz"
        storage.upload_file(str(archive), "models", key)
        return {**told, "ModelArtifacts": {"S3ModelArtifacts": f"s3://models/{key}"}}

    monkeypatch.setattr(drive, "_wait", wait)


def _finish(built: Path, tmp_path: Path) -> edgec.Package:
    folder = built / "bert-out" / "neo-fp32-ml_c5"
    return edgec.finish(folder, tmp_path / "out", on_progress=lambda done, total: None)


def test_the_whole_way(built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _neo_gives(_compiled(), monkeypatch, tmp_path, aws)
    finished = _finish(built, tmp_path)
    check_files(finished)
    assert finished.lowered.unfinished is None and finished.tools["sagemaker-neo"] == "PYTORCH 2.0"
    assert finished.lowered.main.files == ("compiled/compiled.so",)
    assert not (finished.folder / "compiled" / "compiled.so").stat().st_mode & 0o111
    sent = [each["Key"] for each in aws.list_objects_v2(Bucket="models")["Contents"]]
    assert any(key.endswith(f"/{NAME}") for key in sent)
    jobs = get_backend("sagemaker")[_ACCOUNT][_REGION].compilation_jobs
    (job,) = jobs.values()
    assert job.input_config is not None and job.output_config is not None
    assert job.output_config["TargetDevice"] == "ml_c5" and job.input_config["FrameworkVersion"] == "2.0"
    for name in finished.files:
        assert b"tEsTiNg-9f8e7d" not in (finished.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "compiled nothing|empty archive"),
        (_compiled(183), "is for ARM64, and ml_c5 is x86-64"),
        ({"compiled.so": b"MZ" * 20, "compiled_model.json": b"{}", "compiled.params": b"p"}, "no ELF file"),
        ({name: data for name, data in _compiled().items() if name != "compiled.params"}, "No file of parameters"),
        (_compiled(others={"other.so": _ELF + b"\0" * 40}), "2 files could be the library"),
        (_compiled(others={"extra.json": b"{}"}), "2 files could be the graph"),
        (_compiled(others={"compiled.meta": _meta("input_ids", 64)}), "asked for was"),
        (_compiled(others={"compiled.meta": _meta("ids", 32)}), "has the input 'ids'"),
        (_compiled(others={"../evil": b"x"}), "leaves its folder"),
    ],
)  # fmt: skip
def test_what_came_back_is_looked_at(
    members: Mapping[str, bytes], words: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _neo_gives(members, monkeypatch, tmp_path, aws)
    with pytest.raises(EdgecError, match=words):
        _finish(built, tmp_path)
    assert not list((tmp_path / "out").iterdir())


def test_an_input_that_is_given_back_is_no_compiled_model(
    built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extract(built / "bert-out" / "neo-fp32-ml_c5" / NAME, tmp_path / "sent")
    _neo_gives({"model.pth": (tmp_path / "sent" / "model.pth").read_bytes()}, monkeypatch, tmp_path, aws)
    with pytest.raises(CheckFailed, match="gave back the files that it was sent"):
        _finish(built, tmp_path)


def test_pytorch_that_came_back_changed_is_taken() -> None:
    digests = {"model.pth": hashlib.sha256(b"new").hexdigest()}
    assert not list(find_result_faults(_JOB, digests, {"model.pth": "old"}, {}, None))
    assert list(find_result_faults(_JOB, {"a.pth": "x", "b": "y"}, {"a.pth": "x"}, {}, None))


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("FAILED", "ClientError: InputConfiguration: TVM cannot convert the PyTorch model.", "by these shapes"),
        ("FAILED", "The following operators are not implemented: {'aten::foo'}", "lacks an operator"),
        ("FAILED", "ServerError: There was an internal server error", "fault of AWS"),
        ("FAILED", "", "tells no reason"),
        ("STOPPED", "", "was stopped"),
    ],
)
def test_a_job_that_ends_otherwise_says_why(
    status: str, reason: str, words: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = drive._wait

    def wait(service: Any, name: str, settings: Any, on_progress: Any) -> Any:
        job = get_backend("sagemaker")[_ACCOUNT][_REGION].compilation_jobs[name]
        job.compilation_job_status, job.failure_reason = status, reason
        return real(service, name, settings, on_progress)

    monkeypatch.setattr(drive, "_wait", wait)
    with pytest.raises(CheckFailed, match=words):
        _finish(built, tmp_path)
    assert not list((tmp_path / "out").iterdir())


def _answers(monkeypatch: pytest.MonkeyPatch, operation: str, code: str, times: int) -> list[int]:
    """Let AWS answer so many calls of an operation with an error; how many were made."""
    made: list[int] = []
    real = drive._session

    class _Raw(io.BytesIO):
        def stream(self, **_: Any) -> Iterator[bytes]:
            yield self.read()

    def answer(request: Any, **_: Any) -> AWSResponse | None:
        made.append(1)
        if len(made) > times:
            return None
        body = json.dumps({"__type": code, "message": "no"}).encode()
        return AWSResponse(request.url, 400, {"Content-Type": "application/x-amz-json-1.1"}, _Raw(body))

    def session() -> Any:
        made_session = real()
        made_session.events.register(f"before-send.sagemaker.{operation}", answer)
        return made_session

    monkeypatch.setattr(drive, "_session", session)
    return made


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDeniedException", "no rights for it"),
        ("ExpiredTokenException", "have expired"),
        ("UnrecognizedClientException", "not those of an AWS account"),
        ("ResourceLimitExceeded", "as many jobs as it may"),
        ("ValidationException", "AWS's words: no"),
    ],
)
def test_what_aws_refuses_is_told(
    code: str, words: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _answers(monkeypatch, "CreateCompilationJob", code, 100)
    with pytest.raises(UnusableInput, match=words) as refused:
        _finish(built, tmp_path)
    assert code in str(refused.value) and "CreateCompilationJob" in str(refused.value)


def test_throttling_is_waited_for(built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _neo_gives(_compiled(), monkeypatch, tmp_path, aws)
    made = _answers(monkeypatch, "DescribeCompilationJob", "ThrottlingException", 2)
    assert _finish(built, tmp_path).lowered.unfinished is None and len(made) == 3


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EDGEC_S3", "", "No bucket is named"),
        ("EDGEC_S3", "models", "No bucket is named"),
        ("EDGEC_SAGEMAKER_ROLE", "", "No role is named"),
        ("EDGEC_SAGEMAKER_ROLE", "neo", "no ARN of a role"),
        ("AWS_DEFAULT_REGION", "", "No AWS region"),
        ("EDGEC_NEO_SECONDS", "soon", "as a whole number"),
        ("EDGEC_S3", "s3://elsewhere/x", "NoSuchBucket|no such bucket"),
    ],
)
def test_what_the_users_settings_lack_is_told(
    name: str, value: str, words: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(EdgecError, match=words):
        _finish(built, tmp_path)


def test_without_credentials_nothing_is_sent(built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("EDGEC_S3", "s3://models/edgec")
    monkeypatch.setenv("EDGEC_SAGEMAKER_ROLE", _ROLE)
    with pytest.raises(UnusableInput, match="no AWS credentials"):
        _finish(built, tmp_path)


def test_checking_takes_less_than_the_network_would(built: Path) -> None:
    """All of it on what is sent: no call leaves this machine."""
    package = read_package(built / "bert-out" / "neo-fp32-ml_c5")
    drive.require_accepted(_JOB, package.folder / NAME, tuple(_TEXT))
