"""The cache tells what it holds of which model, and gets smaller by age, size and model."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from conftest import assert_refused, run_edgec_here

from compiler.inputs.identity import remember_model
from compiler.model import Model
from compiler.stages import prune
from compiler.stages.cache import cache_folder, find_entry, new_entry_folder, store_entry

_DAY_S = 86400


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _key(name: str) -> str:
    """As keys are: a SHA-256."""
    return hashlib.sha256(name.encode()).hexdigest()


def _held() -> list[str]:
    names = {_key(name): name for name in ("key0", "key1", "key2", "key3", "key4", "old", "one", "two", "three")}
    return [names[each.key] for each in prune.held()]


def _store(name: str, nbytes: int, days_ago: float, source: str = "a" * 64) -> None:
    with new_entry_folder() as folder:
        (folder / "files" / "data").write_bytes(bytes(nbytes))
        entry = store_entry(folder, _key(name), {}, [source])
    used = time.time() - days_ago * _DAY_S
    os.utime(entry.files.parent / "entry.json", (used, used))


def test_what_was_not_used_for_longest_goes_first_and_what_may_be_in_use_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, days in enumerate((3, 2, 1, 0)):
        _store(f"key{number}", 1000, days)
    monkeypatch.setenv("EDGEC_CACHE_LIMIT", "2KB")
    prune.keep_limit()
    assert _held() == ["key2", "key3"]
    monkeypatch.setenv("EDGEC_CACHE_LIMIT", "1")
    prune.keep_limit()
    assert _held() == ["key3"]
    monkeypatch.setenv("EDGEC_CACHE_LIMIT", "0")
    _store("key4", 1000, 9)
    prune.keep_limit()
    assert len(prune.held()) == 2


def test_what_is_another_s_in_the_cache_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a user's that looks like an entry, and entries in a folder that edgec did not make."""
    _store("old", 10, 5)
    stages = cache_folder("stages")
    (stages / "my-project" / "sub").mkdir(parents=True)
    (stages / "my-project" / "entry.json").write_text('{"sizes": {"small": 1}}')
    assert _held() == ["old"]
    (stages / ".edgec").unlink()
    assert prune.held() == []


def test_an_entry_that_is_used_again_is_young() -> None:
    _store("old", 10, 5)
    entry = find_entry(_key("old"))
    assert entry is not None
    prune.touch(entry.files.parent)
    assert time.time() - prune.held()[0].used_s < 60


def test_the_command_tells_and_removes_by_model_age_and_size(smollm2: Model) -> None:
    digest = "b" * 64
    remember_model(smollm2, digest)
    _store("one", 3000, 1, digest)
    _store("two", 2000, 40)
    _store("three", 1000, 0)
    told = json.loads(run_edgec_here("cache", "--json").stdout)
    assert told["models"] == {smollm2.name: 3000, "of other files": 3000}
    assert "Removed" in run_edgec_here("cache", "--older-than", 30).stdout
    assert _held() == ["one", "three"]
    assert run_edgec_here("cache", "--model", smollm2.name).returncode == 0
    assert _held() == ["three"]
    assert run_edgec_here("cache", "--max-bytes", "500").returncode == 0
    assert prune.held() == []
    assert_refused(run_edgec_here("cache", "--model", "nobody"), 2, "knows no model 'nobody'")
    assert_refused(run_edgec_here("cache", "--clear", "--model", "x"), 2, "--clear removes everything")


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEC_CACHE_LIMIT", "much")
    assert_refused(run_edgec_here("cache"), 2, "EDGEC_CACHE_LIMIT", "Write 20GB")


def test_folders_of_others_in_the_cache_are_no_results(own_cache: Path) -> None:
    stages = cache_folder("stages")
    (stages / "mine").mkdir()
    (stages / "mine" / "entry.json").write_text("[]")
    assert prune.held() == []
