"""Where a job's files go and whose rights it has, from the user's environment; credentials are botocore's own business."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from compiler.errors import UnusableInput

BUCKET, ROLE, SECONDS = "EDGEC_S3", "EDGEC_SAGEMAKER_ROLE", "EDGEC_NEO_SECONDS"
_SECONDS = 3600


@dataclass(frozen=True)
class Settings:
    """A folder in S3 such as s3://bucket/edgec, the ARN of a role that SageMaker takes, and how long a job may take."""

    folder: str
    role: str
    seconds: int

    @property
    def bucket(self) -> str:
        return self.folder.removeprefix("s3://").partition("/")[0]

    def key(self, *parts: str) -> str:
        """The key of an object in the folder."""
        prefix = self.folder.removeprefix("s3://").partition("/")[2].strip("/")
        return "/".join(part for part in (prefix, *parts) if part)


def read_settings() -> Settings:
    """From EDGEC_S3, EDGEC_SAGEMAKER_ROLE and EDGEC_NEO_SECONDS.

    Raises:
        UnusableInput: one is missing, or of another form.
    """
    folder, role = os.environ.get(BUCKET, ""), os.environ.get(ROLE, "")
    if not folder.startswith("s3://") or not folder.removeprefix("s3://").strip("/"):
        raise UnusableInput(
            f"No bucket is named. Set {BUCKET} to a folder of yours in S3, such as s3://my-bucket/edgec; what is compiled "
            "goes there and comes back from there."
        )
    if not role:
        raise UnusableInput(
            f"No role is named. Set {ROLE} to the ARN of a role that SageMaker may take and that may read and write {folder}."
        )
    text = os.environ.get(SECONDS, str(_SECONDS))
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise UnusableInput(f"{SECONDS} is {text!r:.20}; give the seconds that a job may take as a whole number.")
    bucket, _, place = folder.removeprefix("s3://").strip("/").partition("/")
    # S3 takes two slashes for a folder without a name.
    parts = [part for part in place.split("/") if part]
    return Settings("/".join((f"s3://{bucket}", *parts)), role, int(text))
