"""ssh: packages are measured on another machine through a real OpenSSH server, over networks that delay, lose and break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Run, assert_refused, build_tiny_encoder
from ssh_board import SshBoard, can_make_networks, can_serve, serve, serve_far_away

from compiler.digest import digest_file
from compiler.errors import UnusableInput
from compiler.package import FileRecord, Package, Platform, check_files, read_package, write_manifest
from runtimes.devices.board import copying
from runtimes.devices.board.board import Board
from runtimes.devices.board.copying import copy_package
from runtimes.devices.board.openssh import SshShell
from runtimes.devices.board.shell import ConnectionLostError, ask
from runtimes.devices.registry import open_device
from runtimes.workload import Workload

pytestmark = pytest.mark.skipif(not can_serve(), reason="needs Debian's openssh-server, and root to run it")
_AGENT = "benchmarks.agent.main"
_WORKLOAD = Workload(sequence_length=16, repetitions=4, rounds=3, threads=1)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    with serve(tmp_path_factory.mktemp("board"), {}) as served:
        yield served


@pytest.fixture(scope="module")
def package(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_encoder(minilm_folder, tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def device(board: SshBoard, monkeypatch: pytest.MonkeyPatch) -> Board:
    return _device(board, monkeypatch)


def _device(board: SshBoard, monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setenv("EDGEC_SSH", board.client)
    opened = open_device(board.address)
    assert isinstance(opened, Board)
    return opened


def _noise(package: Path, folder: Path, nbytes: int) -> Package:
    """A package with a file of noise in the place of its model."""
    shutil.copytree(package, folder)
    (folder / "model.tflite").write_bytes(os.urandom(nbytes))
    read = read_package(folder)
    files = {**read.files, "model.tflite": FileRecord(digest_file(folder / "model.tflite"), nbytes)}
    write_manifest(replace(read, files=files))
    return read_package(folder)


def test_it_is_measured_there_and_copied_once(board: SshBoard, package: Path, edgec: Run, tmp_path: Path) -> None:
    words = ("bench", package, "--device", board.address, "--rounds", 3, "--repetitions", 4, "--json")
    first = edgec(*words, EDGEC_SSH=board.client)
    assert first.returncode == 0, first.stderr
    (measured,) = json.loads(first.stdout)
    assert measured["device"] == board.address and measured["environment"]["tools"].keys() == {"ai-edge-litert"}
    assert [len(samples) for samples in measured["samples"]["latency_s"]] == [4, 4, 4]
    assert measured["summary"]["latency_ms_p50"] > 0 and measured["summary"]["peak_rss_bytes"] > 1e7
    there = board.cache / "packages" / read_package(package).digest
    check_files(read_package(there))
    before = (there / "model.tflite").stat().st_mtime_ns
    assert edgec(*words, EDGEC_SSH=board.client).returncode == 0
    assert (there / "model.tflite").stat().st_mtime_ns == before
    assert not list((board.cache / "runs").iterdir()) and not (board.cache / "busy").is_symlink()


def test_a_boards_profile_is_measured_there(board: SshBoard, edgec: Run, tmp_path: Path) -> None:
    own = {"EDGEC_SSH": board.client, "XDG_CONFIG_HOME": str(tmp_path)}
    done = edgec("devices", "add", "kitchen", "--from", board.address, "--threads", 1, "--json", **own)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)[0]
    assert told["fp32"]["kind"] == told["int8"]["kind"] == "measured"
    assert json.loads(edgec("devices", "kitchen", "--json", **own).stdout)[0]["machine"] == "x86_64"


def _begun(device: Board, board: SshBoard, package: Path, folder: Path) -> tuple[Package, Path]:
    """A package, and the folder that a copy of it has begun there."""
    given = _noise(package, folder / "noise", 5000)
    part = board.cache / "packages" / f"{given.digest}.part"
    assert device.root == str(board.cache)
    part.mkdir(parents=True)
    return given, part


@pytest.mark.parametrize("cut", [False, True])
def test_a_copy_that_takes_longer_than_a_cut_may_ends_right(
    cut: bool, device: Board, board: SshBoard, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut or not at the end of a file that took long."""
    given = _noise(package, tmp_path / "noise", 5000)
    whole = copying._append

    def slow(*words: Any) -> None:
        time.sleep(0.5)
        whole(*words)
        if cut:
            raise ConnectionLostError

    monkeypatch.setattr(copying, "_append", slow)
    monkeypatch.setattr(copying, "PATIENCE_S", 0.2)
    monkeypatch.setattr(copying, "PAUSE_S", 0.0)
    check_files(read_package(Path(copy_package(given, device._shell, device.root))))


@pytest.mark.parametrize(("cut", "damaged"), [(0, False), (1000, False), (1000, True), (-1, False)])
def test_a_copy_that_was_cut_ends_right(
    cut: int, damaged: bool, device: Board, board: SshBoard, package: Path, tmp_path: Path
) -> None:
    given, part = _begun(device, board, package, tmp_path)
    data = (given.folder / "model.tflite").read_bytes()[:cut]
    (part / "model.tflite").write_bytes(bytes(255 - byte for byte in data) if damaged else data)
    place = copy_package(given, device._shell, device.root)
    check_files(read_package(Path(place)))
    assert not part.exists() and Path(f"{place}.whole").exists()


@pytest.mark.parametrize("name", ["model.tflite", "package.json", "tokenizer.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0])
def test_a_copy_that_was_cut_in_any_file_ends_right(
    name: str, share: float, device: Board, board: SshBoard, package: Path, tmp_path: Path
) -> None:
    given, part = _begun(device, board, package, tmp_path)
    data = (given.folder / name).read_bytes()
    (part / name).write_bytes(data[: int(share * len(data))])
    check_files(read_package(Path(copy_package(given, device._shell, device.root))))


@pytest.mark.parametrize("moment", ["all is there and has no name yet", "it has its name and is not called whole"])
def test_a_copy_that_was_cut_at_its_end_ends_right(
    moment: str, device: Board, board: SshBoard, package: Path, tmp_path: Path
) -> None:
    given = _noise(package, tmp_path / "noise", 5000)
    ending = ".part" if "no name" in moment else ""
    assert device.root == str(board.cache)
    shutil.copytree(given.folder, board.cache / "packages" / f"{given.digest}{ending}")
    place = copy_package(given, device._shell, device.root)
    check_files(read_package(Path(place)))
    assert Path(f"{place}.whole").exists() and not Path(f"{place}.part").exists()


def test_a_jump_host_of_the_users_is_taken(board: SshBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `~/.ssh/config` names it; without it the board is not reached."""
    (tmp_path / "jump").mkdir()
    with serve(tmp_path / "jump", {}) as jump:
        port, own = board.address.rpartition(":")[2], Path(board.client.split()[-1]).read_text()
        through = jump.address.removeprefix("ssh://root@").split(":")
        known = (board.folder / "known").read_text() + (tmp_path / "jump" / "known").read_text()
        (tmp_path / "known").write_text(known)
        (tmp_path / "config").write_text(
            f"Host kitchen\n  HostName 127.0.0.1\n  Port {port}\n  ProxyJump jump\n  IdentityFile {board.folder / 'key'}\n"
            f"Host jump\n  HostName {through[0]}\n  Port {through[1]}\n  User root\n"
            f"  IdentityFile {tmp_path / 'jump' / 'key'}\n"
            f"Host *\n  UserKnownHostsFile {tmp_path / 'known'}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
        )
        assert "ProxyJump" not in own
        monkeypatch.setenv("EDGEC_SSH", f"ssh -F {tmp_path / 'config'}")
        opened = open_device("ssh://root@kitchen")
        assert isinstance(opened, Board) and opened.machine.system == "Linux"
    with pytest.raises((UnusableInput, ConnectionLostError)):
        other = open_device("ssh://root@kitchen")
        assert isinstance(other, Board)
        other._shell.run("true", seconds=10)


def test_a_board_that_vanishes_for_good_is_told(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.devices.board.shell.PATIENCE_S", 2.0)
    with serve(tmp_path, {}) as gone:
        device = _device(gone, monkeypatch)
        assert device.machine.system == "Linux"
        for process in psutil.process_iter(["cmdline"]):
            if str(tmp_path / "config") in (process.info["cmdline"] or []):
                process.kill()
        assert isinstance(device._shell, SshShell)
        command = [*device._shell.command, "-O", "exit", "--", device._shell.host]
        subprocess.run(command, capture_output=True, check=True)
        with pytest.raises(UnusableInput, match="was cut for 2 s"):
            ask(device._shell, "true")


def test_who_is_not_let_in_is_told_what_to_do(board: SshBoard, package: Path, edgec: Run, tmp_path: Path) -> None:
    def refused(address: str, client: str) -> subprocess.CompletedProcess[str]:
        return edgec("bench", package, "--device", address, EDGEC_SSH=client)

    port = board.address.rpartition(":")[2]
    (tmp_path / "none").write_text("")
    assert_refused(
        refused(board.address, board.client_with(tmp_path / "none")), 2, "its key is not known here", "fingerprint"
    )
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{port} " + (tmp_path / "other.pub").read_text())
    changed = refused(board.address, board.client_with(tmp_path / "changed"))
    assert_refused(changed, 2, "not the one that known_hosts has", f"ssh-keygen -R '[127.0.0.1]:{port}'")
    stranger = refused(board.address, board.client_with(key=tmp_path / "other"))
    assert_refused(stranger, 2, "does not let you in", "ssh-copy-id")
    assert_refused(refused("ssh://root@127.0.0.1:1", board.client), 2, "nothing listens there")
    assert_refused(refused("ssh://no-such-host.invalid", board.client), 2, "there is no such host")
    for address in ("ssh:pi", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://pi:99999", "ssh://user@"):
        assert_refused(refused(address, board.client), 2, "no address of a board")
    assert_refused(refused(board.address, str(tmp_path / "no-client")), 2, "no OpenSSH client")


def test_a_board_is_measured_on_by_one_at_a_time(
    device: Board, board: SshBoard, package: Path, edgec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = device.start(_AGENT, [device.put(read_package(package)), json.dumps(asdict(_WORKLOAD))], 1)
    try:
        done = edgec("bench", package, "--device", board.address, EDGEC_SSH=board.client)
        assert_refused(done, 2, "another run of edgec has", "4 minutes")
        # One that left no sign of life for long has lost the board.
        (sign,) = (board.cache / "runs").glob("*/alive")
        os.utime(sign, (time.time() - 300, time.time() - 300))
        other = _device(board, monkeypatch)
        other.start(_AGENT, [other.put(read_package(package)), json.dumps(asdict(_WORKLOAD))], 1).close()
    finally:
        agent.close()
    assert not list((board.cache / "runs").iterdir())


def test_an_agent_that_is_killed_there_is_a_result(device: Board, board: SshBoard, package: Path) -> None:
    agent = device.start(_AGENT, [device.put(read_package(package)), json.dumps(asdict(_WORKLOAD))], 1)
    (pid,) = (board.cache / "runs").glob("*/*/pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with pytest.raises(UnusableInput, match=r"was killed on .*, most likely for want of memory"):
        agent.ask("load")
    agent.close()


def test_a_board_that_was_restarted_is_told(device: Board, board: SshBoard, package: Path) -> None:
    place = device.put(read_package(package))
    device.__dict__["machine"] = replace(device.machine, boot="another")
    agent = device.start(_AGENT, [place, json.dumps(asdict(_WORKLOAD))], 1)
    (pid,) = (board.cache / "runs").glob("*/*/pid")
    os.kill(int(pid.read_text()), signal.SIGKILL)
    with pytest.raises(UnusableInput, match="was restarted meanwhile"):
        agent.ask("load")
    agent.close()


def test_an_agent_that_nobody_asks_for_ends(
    device: Board, board: SshBoard, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever started it is gone: without a sign of life the keeper there ends it."""
    monkeypatch.setattr("runtimes.devices.board.agent._KEEPER", _quick_keeper())
    agent = device.start(_AGENT, [device.put(read_package(package)), json.dumps(asdict(_WORKLOAD))], 1)
    (pid,), (sign,) = (board.cache / "runs").glob("*/*/pid"), (board.cache / "runs").glob("*/alive")
    assert Path(f"/proc/{pid.read_text().strip()}").exists()
    os.utime(sign, (time.time() - 3600, time.time() - 3600))
    for _ in range(100):
        if not Path(f"/proc/{pid.read_text().strip()}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    agent.close()


def _quick_keeper() -> str:
    from runtimes.devices.board import agent as remote_agent

    assert "sleep 20" in remote_agent._KEEPER
    return remote_agent._KEEPER.replace("sleep 20", "sleep 0.2")


def test_a_package_for_another_machine_is_refused(device: Board, package: Path) -> None:
    read = read_package(package)
    other = replace(read, lowered=replace(read.lowered, platform=Platform("Linux", "riscv64")))
    with pytest.raises(UnusableInput, match=r"for riscv64 on Linux, and ssh://.* is x86_64 on Linux"):
        device.put(other)


def test_a_board_without_python_or_room_says_so(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("sh", "cat", "mkdir", "uname", "pwd", "df", "tail", "test", "wc", "rm", "mv", "sha256sum"):
        if (found := shutil.which(name)) is not None:
            (bare / name).symlink_to(found)
    (tmp_path / "small").mkdir()
    with serve(tmp_path, {"PATH": str(bare)}) as without_python:
        with pytest.raises(UnusableInput, match=r"has no Python of 3\.11 or newer \(found: none\)"):
            _device(without_python, monkeypatch).put(read_package(package))
        cache = tmp_path / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cache)], check=True)
        try:
            device = _device(without_python, monkeypatch)
            with pytest.raises(UnusableInput, match=r"MB free, and .* still to come\. Free some there"):
                copy_package(_noise(package, tmp_path / "noise", 200_000), device._shell, device.root)
        finally:
            subprocess.run(["umount", "-l", str(cache)], check=True)


@pytest.mark.skipif(not can_make_networks(), reason="needs network namespaces (iproute2, nftables, root)")
def test_a_way_that_is_slow_lossy_and_cut_ends_right(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy and a round, each with the plug pulled in the middle; no index of packages is reachable there."""
    nothing = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_CONFIG_FILE": "/dev/null"}
    with serve_far_away(tmp_path, nothing) as board:
        device = _device(board, monkeypatch)
        given = _noise(package, tmp_path / "noise", 20_000_000)
        assert device.root == str(board.cache)
        plug = threading.Thread(target=_pull_when, args=(board, lambda: _size_there(board, given) > 3_000_000, 3.0))
        plug.start()
        place = copy_package(given, device._shell, device.root)
        plug.join()
        check_files(read_package(Path(place)))
        agent = device.start(_AGENT, [device.put(read_package(package)), json.dumps(asdict(_WORKLOAD))], 1)
        try:
            assert agent.ask("load")["load_s"] > 0
            agent.ask("warmup")
            agent.pause()
            plug = threading.Thread(target=_pull_when, args=(board, lambda: True, 20.0))
            threading.Timer(2.0, plug.start).start()
            threading.Timer(10.0, _resume, (board,)).start()
            assert len(agent.ask("round")["round"]["latency_s"]) == 4
            plug.join()
        finally:
            agent.close()


def _resume(board: SshBoard) -> None:
    """Let a paused agent go on, while nobody can ask it to."""
    (pid,) = (board.cache / "runs").glob("*/*/pid")
    os.kill(int(pid.read_text()), signal.SIGCONT)


def _size_there(board: SshBoard, package: Package) -> int:
    part = board.cache / "packages" / f"{package.digest}.part" / "model.tflite"
    return part.stat().st_size if part.exists() else 0


def _pull_when(board: SshBoard, is_time: object, seconds: float) -> None:
    assert callable(is_time)
    while not is_time():
        time.sleep(0.02)
    board.cut()
    time.sleep(seconds)
    board.mend()
