"""Runs a compilation job, or takes one up again: the archive to S3, the job, its end, what it made, and the look at that.

boto3 finds credentials and the region as the user has set them up; nothing of them is written or shown.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from compiler.digest import digest_file, digest_json
from compiler.errors import CheckFailed, UnusableInput, missing_extra
from compiler.finish import Finished
from compiler.formats.json_file import read_object
from compiler.package import Lowered, Package, Platform
from compiler.records import from_json
from compiler.stages.worker import Progress
from targets.neo.cloud import torchscript
from targets.neo.cloud.archive import NAME, extract, list_members
from targets.neo.cloud.job import CompilationJob, find_request_faults, request
from targets.neo.cloud.prepare import JOB, require_accepted
from targets.neo.cloud.result import LIBRARY_HEAD, META, MODELS, find_result_faults, is_graph, machine_of
from targets.neo.cloud.service import find_job, wait
from targets.neo.cloud.settings import Settings, read_settings

_COMPILED = "compiled"
_MOST_TOLD = 1 << 26
# ELF's numbers of machines as Python's `platform` names them.
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64"}
_CHUNK = 1 << 23
_ADVICE = {
    "AccessDenied": "The role or your user has no rights for it; its policy must allow it.",
    "AccessDeniedException": "The role or your user has no rights for it; its policy must allow it.",
    "ExpiredToken": "Your credentials have expired. Get new ones, for instance by aws sso login.",
    "ExpiredTokenException": "Your credentials have expired. Get new ones, for instance by aws sso login.",
    "UnrecognizedClientException": "Your credentials are not those of an AWS account.",
    "InvalidClientTokenId": "Your credentials are not those of an AWS account.",
    "ThrottlingException": "AWS takes no more calls for now. Try again in a minute.",
    "ResourceLimitExceeded": "The account runs as many jobs as it may. Wait for one to end.",
    "NoSuchBucket": "There is no such bucket. EDGEC_S3 names it.",
    "InvalidSignatureException": "The secret of your credentials is not that of their key, or this machine's clock is wrong.",
    "SignatureDoesNotMatch": "The secret of your credentials is not that of their key, or this machine's clock is wrong.",
    "403": "Your user may not read it in the bucket; its policy must allow it.",
    "404": "It is not in the bucket any more.",
    "ValidationException": "Where it is about the role: SageMaker must be allowed to take it (its trust policy).",
}


def finish(folder: Path, package: Package, on_progress: Progress) -> Finished:
    """Have Neo compile the package's archive; what came back goes into its folder `compiled`.

    Raises:
        UnusableInput: no credentials, region, bucket or role; AWS refuses.
        CheckFailed: the job or the archive is none that Neo takes, the job failed, or what came back is something else.
    """
    settings = read_settings()
    try:
        job = from_json(CompilationJob, read_object(folder / JOB))
    except (ValueError, FileNotFoundError) as error:
        raise UnusableInput(
            f"{JOB} of {package.title} is missing or of another form. Build the package again."
        ) from error
    require_accepted(job, folder / NAME, package.lowered.main.inputs)
    session = _session()
    digest = digest_file(folder / NAME)
    # A job's name can be had once; what is the same but for the time is the same job.
    same = f"edgec-{digest_json([digest, asdict(job), settings.folder, settings.role])[:16]}"
    name = f"{same}-{int(time.time()):x}"
    if faults := list(find_request_faults(*_request(name, settings))):
        raise UnusableInput(f"This job cannot be asked for: {faults[0]}")
    from boto3.exceptions import Boto3Error, S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        storage, service = _clients(session)
        known = find_job(service, storage, same)
        name = known or name
        compiled = folder / _COMPILED
        compiled.mkdir()
        try:
            if known is None:
                storage.upload_file(str(folder / NAME), settings.bucket, settings.key(name, NAME))
                service.create_compilation_job(**request(job, *_request(name, settings)))
            told = wait(service, name, settings.seconds, on_progress, own=known is None)
            _fetch(storage, told, compiled, settings)
            require_compiled(job, folder / NAME, compiled)
        except (CheckFailed, UnusableInput):
            # Else the next run would take it up again.
            _clean(storage, name, settings)
            raise
        except (ClientError, KeyboardInterrupt):
            # A job of another run goes on; one of this run was refused, or is stopped.
            if known is None:
                _clean(storage, name, settings)
            raise
    except S3UploadFailedError as error:
        # boto3 puts it around what S3 answered.
        raise _explained(error.__context__, package) from error
    except ClientError as error:
        raise _explained(error, package) from error
    except (BotoCoreError, Boto3Error) as error:
        raise UnusableInput(f"AWS could not be asked about {package.title} (job {name}): {_reason(error)}") from error
    tools = {"sagemaker-neo": f"{job.framework} {job.version or ''}".strip()}
    return Finished(tools, with_compiled(package.lowered, compiled, job), partial(_clean, storage, name, settings))


def _clients(session: Any) -> tuple[Any, Any]:
    from botocore.exceptions import InvalidRegionError

    try:
        return session.client("s3"), session.client("sagemaker")
    except (InvalidRegionError, ValueError) as error:
        raise UnusableInput(
            f"{str(session.region_name)!r:.40} is no region of AWS's, or an AWS_ENDPOINT_URL is no address. Nothing was sent."
        ) from error


def _request(name: str, settings: Settings) -> tuple[str, str, str, str, int]:
    """The job's name, its role, where the archive lies, where the result goes, and how long it may take."""
    place = f"{settings.folder}/{name}"
    return name, settings.role, f"{place}/{NAME}", f"{place}/out", settings.seconds


def _clean(storage: Any, name: str, settings: Settings) -> None:
    """Take the archive and the result out of the bucket: the package has both. Where that is not allowed they stay."""
    from botocore.exceptions import BotoCoreError, ClientError

    with suppress(BotoCoreError, ClientError):
        found = storage.list_objects_v2(Bucket=settings.bucket, Prefix=f"{settings.key(name)}/")
        for each in found.get("Contents", []):
            storage.delete_object(Bucket=settings.bucket, Key=each["Key"])


def _session() -> Any:
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise missing_extra("boto3", "aws") from error
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.session.Session()
        credentials = session.get_credentials()
    except BotoCoreError as error:
        raise UnusableInput(f"The AWS settings cannot be used: {_reason(error)} Nothing was sent.") from error
    if credentials is None:
        raise UnusableInput(
            "There are no AWS credentials: not in the environment, not in ~/.aws, not of a machine of Amazon's. "
            "`aws configure` sets them up. Nothing was sent."
        )
    if not session.region_name:
        raise UnusableInput(
            "No AWS region is set. Set AWS_DEFAULT_REGION, for instance to eu-central-1. Nothing was sent."
        )
    return session


def _reason(error: Exception) -> str:
    """Our words for what botocore could not do."""
    kind = type(error).__name__
    if "Connect" in kind or "Timeout" in kind or "EndpointConnection" in kind:
        return "it cannot be reached from here. Is there a network, and is the region one of AWS's?"
    if "Credential" in kind or "Token" in kind or "SSO" in kind or "Profile" in kind:
        return "your profile or credentials cannot be used. `aws configure`, or aws sso login, sets them up anew."
    return f"botocore gave up ({kind}). --debug shows all of it."


def _explained(error: Any, package: Package) -> UnusableInput:
    if not hasattr(error, "response"):
        return UnusableInput(f"AWS could not be given {package.title}: {_reason(error)}")
    told = error.response.get("Error", {})
    code = str(told.get("Code", "unknown"))
    words = " ".join(str(told.get("Message", "")).split())[:300]
    advice = f"{_ADVICE.get(code, '')} AWS's words: {words}".strip()
    return UnusableInput(f"AWS refused {error.operation_name} for {package.title} ({code}). {advice}")


def _fetch(storage: Any, told: Mapping[str, Any], compiled: Path, settings: Settings) -> None:
    """The result's files."""
    place = str(told.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""))
    bucket, _, key = place.removeprefix("s3://").partition("/")
    if not place.startswith("s3://") or bucket != settings.bucket:
        raise CheckFailed("neo", f"AWS says that the result lies at {place!r:.200}, which is not in {settings.folder}.")
    if not key.endswith(".tar.gz"):
        found = storage.list_objects_v2(Bucket=bucket, Prefix=key)
        keys = [each["Key"] for each in found.get("Contents", []) if each["Key"].endswith(".tar.gz")]
        if len(keys) != 1:
            raise CheckFailed(
                "neo", f"The job is completed, and {place} holds {len(keys)} archives. It compiled nothing."
            )
        key = keys[0]
    with tempfile.TemporaryDirectory(prefix="edgec-neo-") as temporary:
        archive = Path(temporary) / "compiled.tar.gz"
        storage.download_file(bucket, key, str(archive))
        list_members(archive)
        extract(archive, compiled)


def require_compiled(job: CompilationJob, sent: Path, compiled: Path) -> None:
    """Refuse what came back where it is not what was asked for.

    Raises:
        CheckFailed: with the first reason.
    """
    files = {path.relative_to(compiled).as_posix(): path for path in compiled.rglob("*") if path.is_file()}
    heads = {name: _head(path) for name, path in files.items() if name.endswith((".so", *MODELS))}
    meta = next((path for name, path in files.items() if name.endswith(META)), None)
    graph = next((path for name, path in files.items() if is_graph(name)), None)
    digests = {name: digest_file(path) for name, path in files.items()}
    faults = list(find_result_faults(job, digests, _digests_of(sent), heads, _read(meta), _read(graph)))
    models = [name for name in files if name.endswith(MODELS)]
    with tempfile.TemporaryDirectory(prefix="edgec-neo-") as temporary:
        given = [Path(temporary) / name for name in extract(sent, Path(temporary))] if models and not faults else []
        for name in models:
            faults += torchscript.find_faults(name, files[name], [each for each in given if each.suffix in MODELS])
    if faults:
        raise CheckFailed("neo", f"What Neo gave back for {job.title} is not to be shipped: {faults[0]}")


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None and path.stat().st_size <= _MOST_TOLD else None


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(LIBRARY_HEAD)


def _digests_of(archive: Path) -> dict[str, str]:
    import tarfile

    found = {}
    with tarfile.open(archive, "r:gz") as opened:
        for member in opened:
            if member.isfile() and (stream := opened.extractfile(member)) is not None:
                digest = hashlib.sha256()
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                found[member.name] = digest.hexdigest()
    return found


def with_compiled(lowered: Lowered, compiled: Path, job: CompilationJob) -> Lowered:
    """The package with what came back: the graph is its library, or the model of PyTorch's own runtime."""
    names = sorted(
        f"{_COMPILED}/{path.relative_to(compiled).as_posix()}" for path in compiled.rglob("*") if path.is_file()
    )
    models = [name for name in names if name.endswith(MODELS)]
    libraries = [name for name in names if name.endswith(".so") and "libdlr" not in name]
    main = models or libraries
    heads = [_head(compiled.parent / name) for name in libraries]
    machine = machine_of(heads[0]) if heads else next(iter(job.machines), 0)
    platform = Platform(job.system, _MACHINES[machine]) if machine in _MACHINES else None
    graph = replace(lowered.main, files=tuple(main or names[:1]))
    return replace(lowered, graphs=(graph,), platform=platform)
