"""How this copy of edgec was installed, and so how more of it is."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

_NAME = "edgec"


def install_command(extra: str) -> str:
    """The pip command that adds an extra to this installation.

    pip leaves `direct_url.json` where it installed from a folder or a repository, not from an index (PEP 610).
    """
    try:
        record = json.loads(metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        record = {}
    if not isinstance(record, dict):
        record = {}
    url = str(record.get("url", ""))
    if url.startswith("file:"):
        editable = "-e " if (record.get("dir_info") or {}).get("editable") else ""
        return f"pip install {editable}'{unquote(urlparse(url).path)}[{extra}]'"
    if "vcs_info" in record:
        version = record["vcs_info"]
        return f"pip install '{_NAME}[{extra}] @ {version.get('vcs', 'git')}+{url}@{version.get('commit_id', '')}'"
    if "archive_info" in record:
        return f"pip install '{_NAME}[{extra}] @ {url}'"
    checkout = Path(__file__).parent.parent
    return f"pip install '{checkout if (checkout / 'pyproject.toml').is_file() else _NAME}[{extra}]'"
