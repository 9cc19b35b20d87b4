"""adb: packages are measured through Debian's own adb on what speaks the protocol of a phone. No phone was there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from adb_phone import Phone, can_reach, serve_phone
from conftest import Run, assert_refused, build_tiny_encoder

from compiler.errors import UnusableInput
from compiler.package import check_files, read_package
from runtimes.devices.adb import AdbShell
from runtimes.devices.board.shell import ConnectionLostError, patiently

pytestmark = pytest.mark.skipif(not can_reach(), reason="needs Debian's adb")


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    with serve_phone(tmp_path_factory.mktemp("phone") / "home") as served:
        yield served


@pytest.fixture
def shell(phone: Phone) -> AdbShell:
    serial = phone.address.partition(":")[2]
    return AdbShell(phone.address, (*phone.client.split(), "-s", serial, "shell", "-T"))


def test_it_is_measured_there_and_copied_once(phone: Phone, minilm_folder: Path, edgec: Run, tmp_path: Path) -> None:
    package = build_tiny_encoder(minilm_folder, tmp_path)
    words = ("bench", package, "--device", phone.address, "--rounds", 3, "--repetitions", 4, "--json")
    done = edgec(*words, EDGEC_ADB=phone.client)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)
    assert measured["device"] == phone.address and measured["summary"]["latency_ms_p50"] > 0
    root = phone.home / ".cache" / "edgec" / "board"
    there = root / "packages" / read_package(package).digest
    check_files(read_package(there))
    before = (there / "model.tflite").stat().st_mtime_ns
    assert edgec(*words, EDGEC_ADB=phone.client).returncode == 0
    assert (there / "model.tflite").stat().st_mtime_ns == before
    assert not list((root / "runs").iterdir())


def test_bytes_and_exit_codes_come_through_whole(shell: AdbShell, tmp_path: Path) -> None:
    """Whatever the bytes are, and from any place of a file on."""
    noise = bytes(range(256)) * 3000
    (tmp_path / "noise").write_bytes(noise)
    assert shell.run("cat", noise) == (0, noise, "\n")
    assert shell.run("cat", (tmp_path / "noise", 700_001))[1] == noise[700_001:]
    code, out, said = shell.run("echo one; echo 'two words' >&2; exit 7")
    assert (code, out, said.strip()) == (7, b"one\n", "two words")
    assert shell.run("exit 0; echo never") == (0, b"", "\n")


def test_what_a_script_says_is_not_taken_for_adbs_words(shell: AdbShell) -> None:
    """However much it complains."""
    code, out, said = shell.run("yes unauthorized | head -c 3000000 >&2; echo not found; exit 5")
    assert (code, out) == (5, b"not found\n") and len(said) <= 1 << 20


def test_a_phone_that_says_too_much_is_told(phone: Phone, edgec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = AdbShell(phone.address, (*phone.client.split(), "-s", phone.address.partition(":")[2], "shell", "-T"))
    monkeypatch.setattr(phone, "refusal", "yes edgec-never-begins")
    process = shell.follow("true")
    assert process.wait(30) != 0 and process.stdout is not None
    process.stdout.close()
    for answer in (
        "edgec-begins-here; echo 'edgec-ends-here \u00b2' >&2",
        "edgec-begins-here; printf 'edgec-ends-here 9999999' >&2",
    ):
        monkeypatch.setattr(phone, "refusal", f"echo {answer}")
        with pytest.raises(UnusableInput, match="answers nonsense"):
            shell.run("true")


def test_what_is_followed_comes_line_by_line(shell: AdbShell) -> None:
    process = shell.follow("echo first; sleep 30; echo second")
    assert process.stdout is not None and process.stdout.readline() == b"first\n"
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_way_that_is_cut_is_no_result(phone: Phone, shell: AdbShell) -> None:
    assert shell.run("true")[0] == 0
    with pytest.raises(ConnectionLostError):
        shell.run("sleep 60", seconds=1)
    plug = threading.Timer(1, phone.cut)
    plug.start()
    with pytest.raises(ConnectionLostError):
        shell.run("sleep 20; echo done")
    # adb itself connects again, which a step that may be done twice waits for.
    assert patiently(shell, lambda: shell.run("echo back"))[1] == b"back\n"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("echo 'run-as: unknown package: com.termux' >&2; exit 1", ("has no Termux", "pkg install python")),
        ("echo 'run-as: package not debuggable: com.termux' >&2; exit 1", ("cannot be entered", "ssh://HOST:8022")),
        (
            "echo 'run-as: exec failed for /data/data/com.termux/files/usr/bin/env: No such file or directory' >&2; exit 1",
            ("never started", "Open it once"),
        ),
    ],
)
def test_a_phone_that_cannot_be_used_says_why(
    phone: Phone, refusal: str, words: tuple[str, ...], edgec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phone, "refusal", refusal)
    done = edgec("devices", "add", "mine", "--from", phone.address, EDGEC_ADB=phone.client)
    assert_refused(done, 2, *words)


def test_a_phone_that_is_not_there_is_told(phone: Phone, edgec: Run) -> None:
    done = edgec("devices", "add", "mine", "--from", "adb:R58M1234", EDGEC_ADB=phone.client)
    assert_refused(done, 2, "adb knows no such device", "adb devices")
    assert_refused(edgec("devices", "add", "mine", "--from", "adb:-s;reboot"), 2, "is no phone")
    assert_refused(edgec("devices", "add", "m", "--from", "adb:x", EDGEC_ADB="no-such-adb"), 2, "apt install adb")
    assert_refused(edgec("devices", "add", "m", "--from", "adb:x", EDGEC_ADB="'"), 2, "a quote")
