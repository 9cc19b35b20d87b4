"""What edgec advises to install is what installs it: from where this copy came (PEP 610)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from conftest import Run

from compiler.errors import missing_extra
from compiler.installation import install_command

_CHECKOUT = Path(__file__).parent.parent
_REPOSITORY = "https://example.org/edgec.git"


def _installed(record: Mapping[str, object] | None) -> AbstractContextManager[object]:
    """A distribution with that `direct_url.json`, or none."""
    text = None if record is None else json.dumps(record)
    return patch(
        "compiler.installation.metadata.distribution", lambda name: SimpleNamespace(read_text=lambda file: text)
    )


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (None, f"pip install '{_CHECKOUT}[gguf]'"),
        (
            {"url": "https://example.org/edgec-1.whl", "archive_info": {}},
            "pip install 'edgec[gguf] @ https://example.org/edgec-1.whl'",
        ),
        ({"url": "file:///srv/my%20code/edgec", "dir_info": {}}, "pip install '/srv/my code/edgec[gguf]'"),
        (
            {"url": "file:///srv/edgec", "dir_info": {"editable": True}},
            "pip install -e '/srv/edgec[gguf]'",
        ),
        (
            {"url": _REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "abc123"}},
            f"pip install 'edgec[gguf] @ git+{_REPOSITORY}@abc123'",
        ),
    ],
)
def test_the_command_follows_where_edgec_came_from(record: Mapping[str, object] | None, command: str) -> None:
    with _installed(record):
        assert install_command("gguf") == command
        assert command in str(missing_extra("llama-cpp-python", "gguf"))


def test_a_damaged_record_is_passed_over() -> None:
    for text in ("{", "[]"):
        damaged = SimpleNamespace(read_text=lambda file, text=text: text)
        with patch("compiler.installation.metadata.distribution", return_value=damaged):
            assert install_command("gguf") == f"pip install '{_CHECKOUT}[gguf]'"


def test_doctor_advises_what_is_missing(edgec_here: Run) -> None:
    missing = ("no-such-tool", "onnx", "nothing")
    doctor = "compiler.cli.doctor_command"
    with patch(f"{doctor}.install_command", "pip install {}".format), patch(f"{doctor}.TOOLS", (missing,)):
        words = edgec_here("doctor").stdout.split()
    assert "missing" in words
    assert words[words.index("pip") :] == ["pip", "install", "onnx"]
