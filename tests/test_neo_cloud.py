"""SageMaker Neo: jobs held to Neo's tables before they are sent, run under moto, and what comes back looked at."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tiny
import torch
from conftest import Run, assert_refused
from neo_job import JOB, REGION, ROLE, TEXT, write_archive

from compiler.errors import CheckFailed, UnusableInput
from compiler.formats.archive import write_tar
from compiler.model import Model
from compiler.package import Port, read_package
from targets.neo.cloud import archive
from targets.neo.cloud.archive import NAME, extract, find_layout_faults, list_members, read_member
from targets.neo.cloud.choice import VARIANTS
from targets.neo.cloud.job import CompilationJob, TargetPlatform, find_faults, find_request_faults, request
from targets.neo.cloud.prepare import require_accepted
from targets.neo.cloud.tables import DEVICES, PLATFORMS

PORTS = tuple(Port(name, "int64", shape) for name, shape in TEXT.items())


@pytest.fixture(scope="module")
def built(minilm_folder: Path, smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neo-cloud")
    for kind in ("llama", "gpt2"):
        tiny.save_decoder(kind, smollm2.folder, out / kind)
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
        ({"options": {"dtype": "int8"}}, "one of float"),
        ({"options": {"dtype": ["int64"]}}, "one of float"),
        ({"options": {"ANDROID_PLATFORM": 29}}, "is for Android, and not for ml_c5"),
        ({"options": {"mcpu": "skylake-avx512"}}, "input_ids is int64, and the dtype of CompilerOptions says 'float32'"),
        ({"options": {"mcpu": 5}}, "such as skylake-avx512"),
        ({"options": {"mattr": "+neon"}}, "a list of CPU flags"),
        ({"options": {"gpu-code": "sm_72"}}, "is for NVIDIA"),
        ({"options": {"cpu": "skylake"}}, "no 'cpu'. ml_c5 takes: dtype, mcpu, mattr."),
        ({"device": "rasp3b", "version": "1.8", "options": {"dtype": "int64"}}, "instances of the cloud"),
        ({"device": "qcs605", "version": "1.8", "options": {"ANDROID_PLATFORM": 33}}, "21 to 29"),
        ({"device": "jetson_tx2", "version": "1.8", "options": {"trt-ver": "6.0"}}, "x.y.z"),
        ({"device": "coreml", "version": None, "options": {"mcpu": "apple-a12"}}, "for CPUs"),
    ],
)  # fmt: skip
def test_a_job_that_neo_would_refuse_says_why(changes: Mapping[str, Any], words: str) -> None:
    assert any(words in fault for fault in find_faults(replace(JOB, **changes), PORTS))


def test_a_good_job_has_no_fault() -> None:
    assert not list(find_faults(JOB, PORTS))
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
        ({**TEXT, "zebra": (1, 2)}, "names the input zebra, which the model has not"),
        ({**TEXT, "input_ids": (1, 64)}, "input_ids has the shape [1, 32], and DataInputConfig says [1, 64]"),
    ],
)
def test_names_are_held_to_the_models(inputs: dict[str, tuple[int, ...]], words: str) -> None:
    assert any(words in fault for fault in find_faults(replace(JOB, inputs=inputs), PORTS))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-a", ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60), "job's name"),
        (("a" * 64, ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60), "job's name"),
        (("a", "neo-role", "s3://bucket/m.tar.gz", "s3://bucket/out", 60), "no ARN"),
        (("a", ROLE, "/tmp/m.tar.gz", "s3://bucket/out", 60), "none in S3"),
        (("a", ROLE, "s3://bucket/m.zip", "s3://bucket/out", 60), "end in .tar.gz"),
        (("a", ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 0), "at least a second"),
    ],
)
def test_a_run_that_aws_would_refuse_says_why(arguments: tuple[str, str, str, str, int], words: str) -> None:
    assert any(words in fault for fault in find_request_faults(*arguments))
    assert not list(find_request_faults("a-b", ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60))


def test_the_request_is_of_the_form_that_botocore_knows() -> None:
    service = boto3.client("sagemaker", region_name=REGION, aws_access_key_id="a", aws_secret_access_key="b")
    model = service.meta.service_model.operation_model("CreateCompilationJob").input_shape
    asked = request(JOB, "a", ROLE, "s3://bucket/m.tar.gz", "s3://bucket/out", 60)
    from botocore.validate import ParamValidator

    assert not ParamValidator().validate(asked, model).has_errors()
    assert json.loads(asked["InputConfig"]["DataInputConfig"]) == {name: list(shape) for name, shape in TEXT.items()}
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


@pytest.mark.parametrize("name", ["../evil.so", "/etc/evil", "a/../../b", "a\\..\\b"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="leaves its folder"):
        extract(write_archive(tmp_path / "x.tar.gz", {name: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_with_links_or_of_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="no plain file"):
        list_members(write_archive(tmp_path / "x.tar.gz", {"a.so": b""}, tarfile.SYMTYPE))
    for data in (
        b"",
        b"no archive",
        gzip.compress(b"no tar" * 500),
        write_archive(tmp_path / "y", {"a": b"x" * 9000}).read_bytes()[:60],
    ):
        (tmp_path / "z.tar.gz").write_bytes(data)
        with pytest.raises(UnusableInput, match="no whole"):
            list_members(tmp_path / "z.tar.gz")
    with tarfile.open(tmp_path / "v.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a")
        member.type, member.size = tarfile.XHDTYPE, 2 << 20
        archive.addfile(member, io.BytesIO(b"0" * member.size))
    with pytest.raises(UnusableInput, match="header of 2097152 bytes"):
        list_members(tmp_path / "v.tar.gz")
    damaged = bytearray((write_archive(tmp_path / "w.tar.gz", {"a": bytes(range(256)) * 99})).read_bytes())
    damaged[-6] ^= 1
    (tmp_path / "w.tar.gz").write_bytes(bytes(damaged))
    with pytest.raises(UnusableInput, match="no whole"):
        list_members(tmp_path / "w.tar.gz")


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
    ("name", "sizes", "words"),
    [
        ("pixel_values", (1, 3, 8, 8), None),
        ("pixel_values", ("batch", 3, 8, 8), "the free size 'batch'"),
        ("pixel_values", (1, 3, 8, 16), r"has the shape \[1, 3, 8, 16\], and DataInputConfig says \[1, 3, 8, 8\]"),
        ("image", (1, 3, 8, 8), "says nothing"),
    ],
)
def test_the_onnx_file_is_looked_into(
    name: str, sizes: tuple[int | str, ...], words: str | None, tmp_path: Path
) -> None:
    from onnx import TensorProto, helper

    port, out = (helper.make_tensor_value_info(each, TensorProto.FLOAT, sizes) for each in (name, "out"))
    graph = helper.make_graph([helper.make_node("Relu", [name], ["out"])], "graph", [port], [out])
    data = helper.make_model(graph).SerializeToString()
    job = CompilationJob("ONNX", None, {"pixel_values": (1, 3, 8, 8)}, device="rasp4b")
    archive = write_archive(tmp_path / NAME, {"model.onnx": data})
    with pytest.raises(CheckFailed, match=words) if words else nullcontext():
        require_accepted(job, archive)
    with pytest.raises(CheckFailed, match="no ONNX file"):
        require_accepted(job, write_archive(tmp_path / NAME, {"model.onnx": b"\xff\xff"}))


@pytest.mark.parametrize(
    ("model", "recipe", "words"),
    [
        ("bert", "neo:fp32@rasp4b", ("Hugging Face", "@ml_c5", "@local")),
        ("vit", "neo:fp32@jetson_nano", ("Vision Transformer", "@ml_c5")),
        ("bert", "neo:fp16@ml_c5", ("neo:fp32@ml_c5",)),
        ("bert", "neo:fp32@ml_inf2", ("no variant @ml_inf2",)),
        (
            "llama",
            "neo:fp32@ml_c5",
            ("not text-generation", "neuron:bf16 and gguf:Q4_0 and onnx:int4-rtn-g32 can be made"),
        ),
        ("gpt2", "neo:fp32@ml_c5", ("not text-generation", "gguf:Q4_0")),
    ],
)
def test_what_neos_tables_leave_out_is_refused_before_any_work(
    model: str, recipe: str, words: tuple[str, ...], built: Path, edgec: Run, tmp_path: Path
) -> None:
    assert_refused(edgec("build", built / model, "-r", recipe, "-o", tmp_path), 2, *words)


def test_it_is_unfinished_until_neo_has_compiled_it(built: Path, edgec: Run) -> None:
    assert_refused(edgec("verify", built / "bert-out" / "neo-fp32-ml_c5"), 2, "unfinished", "SageMaker Neo")


def test_what_is_asked_of_the_tables_is_asked_offline(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it takes is printed by benchmarks/peers/aws.py."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))
    package = read_package(built / "bert-out" / "neo-fp32-ml_c5")
    require_accepted(JOB, package.folder / NAME, PORTS)
    assert set(VARIANTS) >= {"rasp4b", "ml_c5", "linux-arm64-mali"} and "coreml" not in VARIANTS


@pytest.mark.parametrize(("limit", "most"), [("_MOST_BYTES", 4096), ("_MOST_MEMBERS", 3)])
def test_an_archive_that_unpacks_to_too_much_is_refused(
    limit: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes can hold gigabytes of zeros, or more files than a disk has room for."""
    members = {f"file{number}": b"" for number in range(9)} | {"zeros": bytes(100_000)}
    file = write_archive(tmp_path / "bomb.tar.gz", members)
    assert file.stat().st_size < 2000 and len(list_members(file)) == 10
    monkeypatch.setattr(archive, limit, most)
    with pytest.raises(UnusableInput, match="Refused"):
        list_members(file)
    with pytest.raises(UnusableInput, match="Refused"):
        extract(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
