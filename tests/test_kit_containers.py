"""Kits for containers: the Dockerfile holds hadolint's rules, and the same start script serves here with real llama.cpp.

No Docker engine and no Ollama were run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import tiny
import yaml
from conftest import Run, assert_refused

from compiler.kit import image_name
from compiler.model import Model


@pytest.fixture(scope="module")
def kits(smollm2: Model, edgec_here: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("containers")
    tiny.save_decoder("llama", smollm2.folder, out / "Tiny Llama")
    done = edgec_here(
        "build", out / "Tiny Llama", "-r", "gguf:Q8_0", "-r", "onnx:int4-rtn-g32", "-o", out, "--context-length", 256
    )
    assert done.returncode == 0, done.stderr
    for system in ("docker", "ollama"):
        made = edgec_here("kit", out / "gguf-Q8_0", "--for", system, "-o", out / system)
        assert made.returncode == 0, made.stderr
    return out


def test_the_dockerfile_holds_hadolints_rules(kits: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(hadolint), str(kits / "docker" / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    wrong = kits / "wrong"
    wrong.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install python\n")
    assert subprocess.run([str(hadolint), str(wrong)], capture_output=True, check=False).returncode == 1


def test_the_container_is_no_root_and_read_only_and_listens_here_alone(kits: Path) -> None:
    compose = yaml.safe_load((kits / "docker" / "compose.yaml").read_text())
    ((name, service),) = compose["services"].items()
    assert name == "tiny-llama" and service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and service["ports"] == ["127.0.0.1:8000:8000"]
    lines = (kits / "docker" / "Dockerfile").read_text().splitlines()
    assert lines.index("USER 10001:10001") < next(at for at, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    copied = next(line for line in lines if line.startswith("COPY start.py")).split()[1:-1]
    allowed = {
        line[1:] for line in (kits / "docker" / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert set(copied) == allowed == {each.name for each in (kits / "docker").iterdir()} & set(copied)


@pytest.fixture
def placed(kits: Path, tmp_path: Path) -> Path:
    """The kit's files, which nobody may write."""
    place = tmp_path / "model"
    shutil.copytree(kits / "docker", place)
    for each in (*place.iterdir(), place):
        each.chmod(0o555 if each.is_dir() else 0o444)
    return place


# What `docker run` does with the image and compose.yaml's options: a root of its own, read-only but for /tmp, whose /usr and
# Python are this machine's in the place of the base image's; the image's user; no capabilities, no new privileges.
_CONTAINER = """
set -e
root=$1; shift
mount -t tmpfs none "$root"
mkdir -p "$root"/usr "$root"/etc "$root"/dev "$root"/proc "$root"/tmp "$root"/model
for link in bin lib lib64 sbin; do ln -s usr/$link "$root"/$link; done
cp /etc/ld.so.cache /etc/hosts "$root"/etc/
touch "$root"/dev/null "$root"/dev/urandom
mount --bind /dev/null "$root"/dev/null
mount --bind /dev/urandom "$root"/dev/urandom
mount -t proc none "$root"/proc
mount --rbind /usr "$root"/usr
for place in $PLACES; do mkdir -p "$root$place"; mount --rbind "$place" "$root$place"; done
mount --bind "$MODEL" "$root"/model
mount -t tmpfs -o mode=1777 none "$root"/tmp
mount -o remount,ro,bind "$root"/model
mount -o remount,ro "$root"
exec chroot "$root" setpriv --reuid "$OWNER" --regid "$OWNER" --clear-groups --no-new-privs --inh-caps=-all \\
    --bounding-set=-all env -i PATH=/usr/bin HOME=/nonexistent PORT="$PORT" HOST=127.0.0.1 "$@"
"""


def _start(folder: Path, port: int, owner: str, work: Path) -> subprocess.Popen[str]:
    """The start script in a root of its own, as the image's user."""
    root = work / "root"
    root.mkdir()
    # The environment's Python, and what it is linked to.
    places = {sys.prefix, sys.base_prefix} - {"/usr"}
    variables = {
        "PATH": os.environ["PATH"], "PLACES": " ".join(sorted(places)), "MODEL": str(folder), "OWNER": owner,
        "PORT": str(port),
    }  # fmt: skip
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _CONTAINER, "sh", str(root)]
    words += [sys.executable, "-B", "-P", "/model/start.py"]
    return subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True)


def _can_make_roots() -> bool:
    return os.getuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@pytest.mark.skipif(not _can_make_roots(), reason="only root makes a root of its own")
def test_the_start_script_serves_in_a_root_of_its_own(placed: Path, tmp_path: Path) -> None:
    dockerfile = (placed / "Dockerfile").read_text()
    owner = dockerfile.partition("USER ")[2].partition(":")[0]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = _start(placed, port, owner, tmp_path)
    try:
        for _ in range(240):
            assert server.poll() is None, server.communicate()[1]
            try:
                httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] >= 1
        (child,) = _children(server.pid)
        status = dict(
            line.split(":\t") for line in Path(f"/proc/{child}/status").read_text().splitlines() if ":\t" in line
        )
        assert status["Uid"].split() == [owner] * 4 and int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert str(Path(f"/proc/{child}/root").readlink()) != "/"
        healthy = subprocess.run(
            [sys.executable, str(placed / "start.py"), "--healthy"], env={**os.environ, "PORT": str(port)}, check=False
        )
        assert healthy.returncode == 0
    finally:
        server.kill()
        server.wait()


def _children(parent: int) -> list[str]:
    return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()


def test_another_file_in_the_models_place_is_not_served(kits: Path, tmp_path: Path) -> None:
    shutil.copytree(kits / "docker", tmp_path / "kit")
    file = next((tmp_path / "kit").glob("*.gguf"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "kit" / "start.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "is not the file that edgec packaged" in done.stderr


def test_ollama_gets_the_packages_modelfile(kits: Path) -> None:
    folder = kits / "ollama"
    modelfile = (folder / "Modelfile").read_text()
    named = modelfile.splitlines()[0].removeprefix("FROM ./")
    assert (folder / named).read_bytes() == (kits / "gguf-Q8_0" / named).read_bytes()
    assert "PARAMETER num_ctx 256" in modelfile
    assert "ollama create tiny-llama -f Modelfile" in (folder / "README.md").read_text()


def test_names_that_docker_takes() -> None:
    assert [image_name(each) for each in ("all-MiniLM-L6-v2", "A_b.C", "模型")] == [
        "all-minilm-l6-v2",
        "a-b-c",
        "model",
    ]


def test_packages_of_other_runtimes_are_refused(kits: Path, edgec: Run, tmp_path: Path) -> None:
    done = edgec("kit", kits / "onnx-int4-rtn-g32", "--for", "docker", "-o", tmp_path / "never")
    assert_refused(done, 2, "docker", "ortgenai")
    told = json.loads(edgec("kit", kits / "gguf-Q8_0", "-o", tmp_path / "kit", "--json").stdout)
    assert "Dockerfile" in told["files"]
