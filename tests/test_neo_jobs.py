"""SageMaker Neo's jobs under moto, which imitates S3 and SageMaker: the whole way, and every way that it can end."""

from __future__ import annotations

import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
import tiny
from botocore.awsrequest import AWSResponse
from botocore.exceptions import EndpointConnectionError
from conftest import Run
from moto import mock_aws
from moto.backends import get_backend
from neo_job import ACCOUNT, REGION, ROLE, TEXT, compiled, write_archive

import edgec
from compiler.errors import CheckFailed, EdgecError, UnusableInput
from compiler.package import check_files
from runtimes import dlr
from targets.neo.cloud import drive, service
from targets.neo.cloud.archive import NAME, extract


@pytest.fixture(scope="module")
def built(minilm_folder: Path, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neo-jobs")
    bert = tiny.save_encoder("bert", minilm_folder, out / "bert")
    words = ("-r", "neo:fp32@ml_c5", "--sequence-length", 32, "-o", out / "bert-out")
    done = edgec_here("build", bert, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "tEsTiNg-9f8e7d", "AWS_DEFAULT_REGION": REGION,
        "EDGEC_S3": "s3://models/edgec", "EDGEC_SAGEMAKER_ROLE": ROLE, service.POLL: "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with mock_aws():
        storage = boto3.client("s3")
        storage.create_bucket(Bucket="models")
        yield storage


def test_dlr_is_given_the_folder_and_the_inputs(
    built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its own calls, as neo-ai-dlr 1.10's api.py has them; DLR itself was not run."""
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    finished = _finish(built, tmp_path)
    with pytest.raises(UnusableInput, match="pip install dlr"):
        dlr.open_session(finished, 1)
    asked: list[Any] = []

    class Model:
        def __init__(self, folder: str, kind: str) -> None:
            asked.append((Path(folder), kind))

        def run(self, inputs: dict[str, Any]) -> list[Any]:
            asked.append({name: (each.dtype, each.shape) for name, each in inputs.items()})
            return [np.ones((1, 4))]

    monkeypatch.setitem(sys.modules, "dlr", SimpleNamespace(DLRModel=Model))
    session = dlr.open_session(finished, 1)
    found = session.run({name: np.zeros(shape, np.int32) for name, shape in TEXT.items()})
    assert asked[0] == (finished.folder / "compiled", "cpu")
    told = {
        **json.loads((finished.folder / "compiled" / "compiled.meta").read_bytes()),
        "Requirements": {"TargetDeviceType": "OpenCL"},
    }
    (finished.folder / "compiled" / "compiled.meta").write_text(json.dumps(told))
    dlr.open_session(finished, 1)
    assert asked[-1] == (finished.folder / "compiled", "opencl")
    assert asked[1] == {name: (np.dtype("int64"), shape) for name, shape in TEXT.items()}
    assert [each.dtype for each in found.values()] == [np.dtype("float32")]


def _neo_gives(members: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, storage: Any) -> None:
    """What moto leaves out: the compiled archive in S3, when the job is asked about."""
    real = drive.wait

    def wait(client: Any, name: str, seconds: int, on_progress: Any, own: bool = True) -> Any:
        told = dict(real(client, name, seconds, on_progress))
        archive = write_archive(tmp_path / "neo.tar.gz", members)
        key = f"edgec/{name}/out/model-ml_c5.tar.gz"
        storage.upload_file(str(archive), "models", key)
        return {**told, "ModelArtifacts": {"S3ModelArtifacts": f"s3://models/{key}"}}

    monkeypatch.setattr(drive, "wait", wait)


def _finish(built: Path, tmp_path: Path) -> edgec.Package:
    folder = built / "bert-out" / "neo-fp32-ml_c5"
    return edgec.finish(folder, tmp_path / "out", on_progress=lambda done, total: None)


def test_the_whole_way(built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    aws.put_object(Bucket="models", Key="edgec/mine.txt", Body=b"mine")
    finished = _finish(built, tmp_path)
    check_files(finished)
    assert finished.lowered.unfinished is None and finished.tools["sagemaker-neo"] == "PYTORCH 2.0"
    assert finished.lowered.main.files == ("compiled/compiled.so",)
    assert not (finished.folder / "compiled" / "compiled.so").stat().st_mode & 0o111
    # The package has both, and what is not ours stays.
    assert [each["Key"] for each in aws.list_objects_v2(Bucket="models")["Contents"]] == ["edgec/mine.txt"]
    jobs = get_backend("sagemaker")[ACCOUNT][REGION].compilation_jobs
    (job,) = jobs.values()
    assert job.input_config is not None and job.output_config is not None
    assert job.output_config["TargetDevice"] == "ml_c5" and job.input_config["FrameworkVersion"] == "2.0"
    for name in finished.files:
        assert b"tEsTiNg-9f8e7d" not in (finished.folder / name).read_bytes()


def _jobs() -> dict[str, Any]:
    """Jobs that were asked for, by their names."""
    return dict(get_backend("sagemaker")[ACCOUNT][REGION].compilation_jobs)


@pytest.mark.parametrize("lost", ["while it waited", "while it fetched"])
def test_a_run_that_lost_its_connection_takes_its_job_up_again(
    lost: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    whole = drive.wait

    def cut(client: Any, name: str, seconds: int, on_progress: Any, own: bool = True) -> Any:
        told = whole(client, name, seconds, on_progress)
        if lost == "while it fetched":
            _jobs()[name].model_artifacts = told["ModelArtifacts"]
        else:
            _jobs()[name].compilation_job_status = "INPROGRESS"
        raise EndpointConnectionError(endpoint_url="https://api.sagemaker")

    monkeypatch.setattr(drive, "wait", cut)
    with pytest.raises(UnusableInput, match="cannot be reached"):
        _finish(built, tmp_path)
    (name,) = _jobs()
    _jobs()[name].compilation_job_status = "COMPLETED" if lost == "while it fetched" else "INPROGRESS"

    def end(client: Any, name: str, seconds: int, on_progress: Any, own: bool = True) -> Any:
        _jobs()[name].compilation_job_status = "COMPLETED"
        return whole(client, name, seconds, on_progress)

    monkeypatch.setattr(drive, "wait", end)
    assert _finish(built, tmp_path).lowered.unfinished is None
    assert list(_jobs()) == [name]


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "COMPLETED"])
def test_a_job_that_left_nothing_is_asked_for_anew(
    status: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a completed one whose result was fetched and taken away there is nothing any more."""
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    assert _finish(built, tmp_path / "first").lowered.unfinished is None
    (first,) = _jobs()
    _jobs()[first].compilation_job_status = status
    monkeypatch.setattr(time, "time", lambda: 1e9)
    assert _finish(built, tmp_path / "second").lowered.unfinished is None
    assert len(_jobs()) == 2


def test_who_interrupts_stops_the_job(aws: Any) -> None:
    stopped = []

    class Client:
        def describe_compilation_job(self, CompilationJobName: str) -> dict[str, str]:
            raise KeyboardInterrupt

        def stop_compilation_job(self, CompilationJobName: str) -> None:
            stopped.append(CompilationJobName)

    with pytest.raises(KeyboardInterrupt):
        service.wait(Client(), "job", 60, lambda done, total: None)
    assert stopped == ["job"]
    # A job of an earlier run is not this one's to stop.
    with pytest.raises(KeyboardInterrupt):
        service.wait(Client(), "job", 60, lambda done, total: None, own=False)
    assert stopped == ["job"]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "compiled nothing|empty archive"),
        (compiled(183), "is for ARM64, and ml_c5 is x86-64"),
        (compiled(others={"../evil": b"x"}), "leaves its folder"),
        (compiled(others={"libdlr.so/x": b"x"}), "beside the others"),
    ],
)  # fmt: skip
def test_what_came_back_is_looked_at(
    members: Mapping[str, bytes], words: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _neo_gives(members, monkeypatch, tmp_path, aws)
    with pytest.raises(EdgecError, match=words):
        _finish(built, tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_given_back_is_no_compiled_model(
    built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extract(built / "bert-out" / "neo-fp32-ml_c5" / NAME, tmp_path / "sent")
    _neo_gives({"model.pth": (tmp_path / "sent" / "model.pth").read_bytes()}, monkeypatch, tmp_path, aws)
    with pytest.raises(CheckFailed, match="gave back the files that it was sent"):
        _finish(built, tmp_path)


def test_pytorch_that_came_back_changed_is_taken(
    built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And what is no TorchScript, or was packed anew, is not; after a refusal there is a new job."""
    extract(built / "bert-out" / "neo-fp32-ml_c5" / NAME, tmp_path / "sent")
    sent = zipfile.ZipFile(tmp_path / "sent" / "model.pth")

    def packed(change: bytes | None, *more: str) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for name in sent.namelist():
                data = sent.read(name)
                archive.writestr(name, data + (change or b"") if "/code/" in name else data)
            for name in more:
                archive.writestr(name, b"x")
        return made.getvalue()

    for number, (members, words) in enumerate((
        ({"model.pth": packed(None)}, "packed anew"),
        ({"model.pth": b"PK\x03\x04 this is no TorchScript"}, "no TorchScript"),
        ({"model.pth": packed(b"# compiled"), "lib/x.so": b"MZ" * 20}, "no ELF"),
        ({"model.pth": packed(b"# compiled"), "other.pth": packed(b"# too")}, "2 models came back"),
    )):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda number=number: 1e9 + number)
            _neo_gives(members, patched, tmp_path, aws)
            with pytest.raises(CheckFailed, match=words):
                _finish(built, tmp_path / str(number))
    assert len(_jobs()) == 4 and "Contents" not in aws.list_objects_v2(Bucket="models")
    _neo_gives({"model.pth": packed(b"# compiled")}, monkeypatch, tmp_path, aws)
    finished = _finish(built, tmp_path / "good")
    assert finished.lowered.main.files == ("compiled/model.pth",) and len(_jobs()) == 5
    with pytest.raises(UnusableInput, match="AWS's container"):
        dlr.open_session(finished, 1)


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("FAILED", "ClientError: InputConfiguration: TVM cannot convert the PyTorch model.", "by these shapes"),
        ("FAILED", "The following operators are not implemented: {'aten::foo'}", "lacks an operator"),
        ("FAILED", "ServerError: There was an internal server error", "fault of AWS"),
        ("FAILED", "", "tells no reason"),
        ("FAILED", "TimeOut: the job took longer than MaxRuntimeInSeconds", "EDGEC_NEO_SECONDS gives it more"),
        ("STOPPED", "", "was stopped"),
    ],
)
def test_a_job_that_ends_otherwise_says_why(
    status: str, reason: str, words: str, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = drive.wait

    def wait(client: Any, name: str, seconds: int, on_progress: Any, own: bool = True) -> Any:
        job = get_backend("sagemaker")[ACCOUNT][REGION].compilation_jobs[name]
        job.compilation_job_status, job.failure_reason = status, reason
        return real(client, name, seconds, on_progress)

    monkeypatch.setattr(drive, "wait", wait)
    with pytest.raises(CheckFailed, match=words):
        _finish(built, tmp_path)
    assert not (tmp_path / "out").exists() and "Contents" not in aws.list_objects_v2(Bucket="models")


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
    assert "Contents" not in aws.list_objects_v2(Bucket="models")


@pytest.mark.parametrize("times", [2, 12])
def test_throttling_is_waited_for(
    times: int, built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beyond what botocore tries again too: the job goes on meanwhile."""
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0)
    made = _answers(monkeypatch, "DescribeCompilationJob", "ThrottlingException", times)
    assert _finish(built, tmp_path).lowered.unfinished is None and len(made) == times + 1


def test_who_may_not_list_jobs_gets_a_new_one_and_who_is_throttled_does_not(
    built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    with monkeypatch.context() as patched:
        _answers(patched, "ListCompilationJobs", "AccessDeniedException", 100)
        assert _finish(built, tmp_path / "denied").lowered.unfinished is None
    monkeypatch.setattr(time, "time", lambda: 1e9)
    _answers(monkeypatch, "ListCompilationJobs", "ExpiredTokenException", 100)
    with pytest.raises(UnusableInput, match="have expired"):
        _finish(built, tmp_path / "expired")


def test_two_slashes_in_the_place_are_one(
    built: Path, aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _neo_gives(compiled(), monkeypatch, tmp_path, aws)
    monkeypatch.setenv("EDGEC_S3", "s3://models//edgec//")
    assert _finish(built, tmp_path).lowered.unfinished is None
    (job,) = _jobs().values()
    assert job.output_config["S3OutputLocation"].startswith("s3://models/edgec/edgec-")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EDGEC_S3", "", "No bucket is named"),
        ("EDGEC_S3", "models", "No bucket is named"),
        ("EDGEC_SAGEMAKER_ROLE", "", "No role is named"),
        ("EDGEC_SAGEMAKER_ROLE", "neo", "no ARN of a role"),
        ("AWS_DEFAULT_REGION", "", "No AWS region"),
        ("EDGEC_NEO_SECONDS", "soon", "as a whole number"),
        ("EDGEC_NEO_SECONDS", "²", "as a whole number"),
        ("AWS_DEFAULT_REGION", "us east", "is no region"),
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
    monkeypatch.setenv("EDGEC_SAGEMAKER_ROLE", ROLE)
    with pytest.raises(UnusableInput, match="no AWS credentials"):
        _finish(built, tmp_path)
