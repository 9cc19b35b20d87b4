"""One compilation job on AWS's side: found again, waited for, stopped."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from compiler.errors import CheckFailed
from compiler.stages.worker import Progress

_GOING_ON, _DONE = ("INPROGRESS", "STARTING"), "COMPLETED"
_PENDING = (*_GOING_ON, "STOPPING")
# Seconds between two questions; tests need none.
POLL = "EDGEC_NEO_POLL_SECONDS"
_POLL_SECONDS = 5.0


def find_job(service: Any, storage: Any, same: str) -> str | None:
    """The newest job whose name begins so, where it goes on, or has ended well and its result is there; None without.

    A run that lost its connection is taken up again so.
    """
    from botocore.exceptions import ClientError

    try:
        found = service.list_compilation_jobs(NameContains=same, SortBy="CreationTime", SortOrder="Descending")
    except ClientError as error:
        # Some may ask for jobs and not for lists of them; then there is a new job.
        if str(error.response.get("Error", {}).get("Code")) in ("AccessDenied", "AccessDeniedException"):
            return None
        raise
    for each in found.get("CompilationJobSummaries", []):
        name, status = str(each["CompilationJobName"]), each["CompilationJobStatus"]
        if not name.startswith(f"{same}-"):
            continue
        if status in _GOING_ON or (status == _DONE and _has_result(service, storage, name)):
            return name
    return None


def _has_result(service: Any, storage: Any, name: str) -> bool:
    from botocore.exceptions import ClientError

    told = service.describe_compilation_job(CompilationJobName=name)
    place = str(told.get("ModelArtifacts", {}).get("S3ModelArtifacts", ""))
    bucket, _, key = place.removeprefix("s3://").partition("/")
    try:
        found = storage.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", []) if bucket else []
        return any(str(each["Key"]).endswith(".tar.gz") for each in found)
    except ClientError:
        return False


def wait(service: Any, name: str, seconds: int, on_progress: Progress, *, own: bool = True) -> Mapping[str, Any]:
    """What AWS tells of the job when it has ended well. Who is interrupted meanwhile has it stopped, where it is his `own`.

    Raises:
        CheckFailed: it ended otherwise, or goes on for longer than it may.
    """
    try:
        return _ended(service, name, seconds, on_progress)
    except KeyboardInterrupt:
        if own:
            _stop(service, name)
        raise


def _stop(service: Any, name: str) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    # It may have ended, or the user may not stop jobs.
    with suppress(BotoCoreError, ClientError):
        service.stop_compilation_job(CompilationJobName=name)


def _poll_seconds() -> float:
    said = os.environ.get(POLL, "")
    return float(said) if re.fullmatch(r"[0-9]{1,4}(\.[0-9]+)?", said) else _POLL_SECONDS


def _asked(service: Any, name: str) -> Mapping[str, Any]:
    """What AWS tells of a job; nothing where it takes no more calls for now, as the job goes on."""
    from botocore.exceptions import ClientError

    try:
        found: Mapping[str, Any] = service.describe_compilation_job(CompilationJobName=name)
        return found
    except ClientError as error:
        if "Throttling" in str(error.response.get("Error", {}).get("Code")):
            return {}
        raise


def _ended(service: Any, name: str, seconds: int, on_progress: Progress) -> Mapping[str, Any]:
    began, poll = time.monotonic(), _poll_seconds()
    while True:
        told = _asked(service, name)
        status = told.get("CompilationJobStatus", _GOING_ON[0])
        spent = time.monotonic() - began
        on_progress(min(int(spent), seconds), seconds)
        if status == _DONE:
            return told
        if status not in _PENDING:
            raise CheckFailed("neo", _failure(name, status, str(told.get("FailureReason", ""))))
        if spent > seconds + 600:
            raise CheckFailed(
                "neo", f"The job {name} has not ended after {spent:.0f} s. Look at it in SageMaker's console."
            )
        time.sleep(poll)


_MEANINGS = (
    (r"time ?-?out|timed out|MaxRuntime", "It took longer than it may; EDGEC_NEO_SECONDS gives it more."),
    (r"not implemented", "Neo's TVM lacks an operator of the model. @local compiles it here, with a newer one."),
    (r"input-shape mismatch|cannot convert", "Neo could not read the model by these shapes."),
    (r"cannot load|No .* file found|Exactly one", "Neo could not read the archive."),
    (r"S3|Bucket", "Neo could not read or write in S3: look at the role's rights and the bucket's region."),
    (r"internal server error|unexpected error", "That is a fault of AWS's. Try again; where it stays, ask AWS."),
)


def _failure(name: str, status: str, reason: str) -> str:
    words = " ".join(reason.split())[:400]
    if status == "STOPPED":
        told = f" AWS's words: {words}" if words else ""
        return (
            f"The job {name} was stopped before its end, by hand or by its time limit (EDGEC_NEO_SECONDS); nothing was "
            f"compiled.{told}"
        )
    meaning = next((meaning for pattern, meaning in _MEANINGS if re.search(pattern, reason, re.IGNORECASE)), "")
    told = (
        f" AWS tells of it: {words}"
        if words
        else " AWS tells no reason; its log group is /aws/sagemaker/CompilationJobs."
    )
    return f"Neo did not compile the model: the job {name} ended as {status}. {meaning}{told}"
