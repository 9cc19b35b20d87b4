"""The disk, kernel and keys of an emulated ARM64 board, made of Debian's packages by mmdebstrap; nothing of them runs here.

The packages are unpacked and not configured, since their scripts are for ARM64: a start script of edgec's takes the place of
an init system, and starts OpenSSH's server. Kernel modules are loaded by a small initial file system (the kernel's own
documentation, driver-api/early-userspace/buffer-format).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compiler.digest import digest_json
from compiler.errors import UnusableInput
from compiler.stages.cache import cache_folder

SUITE, USER = "bookworm", "root"
_PACKAGES = (
    "base-files", "base-passwd", "coreutils", "findutils", "grep", "sed", "tar", "gzip", "util-linux", "dash", "bash",
    "libc-bin", "libstdc++6", "libgomp1", "mount", "hostname", "procps", "iproute2", "python3", "python3-venv",
    "openssh-server", "busybox-static", "linux-image-cloud-arm64",
)  # fmt: skip
# One that the kernel has built in has no file.
_MODULES = (
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio", "virtio_blk",
    "failover", "net_failover", "virtio_net",
)  # fmt: skip
_DISK_BYTES = 8 << 30
_PROGRAMS = (
    ("mmdebstrap", "mmdebstrap"),
    ("qemu-system-aarch64", "qemu-system-arm"),
    ("mke2fs", "e2fsprogs"),
    ("ssh-keygen", "openssh-client"),
)

_START = """#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /run/sshd; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run
mkdir -p /run/sshd; hostname edgec-arm64
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
/usr/sbin/sshd -e -f /etc/ssh/edgec_config
while sleep 3600; do :; done
"""
_INITIAL = """#!/busybox sh
/busybox mkdir -p /proc /sys /dev /disk
/busybox mount -t devtmpfs devtmpfs /dev
# Which of them needs which, kernels differ in: what cannot be loaded yet is tried again.
for round in 1 2 3; do
    for module in {modules}; do /busybox insmod /$module 2>/dev/null; done
done
n=0
while [ ! -b /dev/vda ] && [ $n -lt 100 ]; do /busybox sleep 0.1; n=$((n + 1)); done
/busybox mount -t ext4 /dev/vda /disk
exec /busybox switch_root /disk /edgec-start
"""
_SERVER = """Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
AuthorizedKeysFile /etc/ssh/edgec_keys
StrictModes no
UsePAM no
UseDNS no
"""


@dataclass(frozen=True)
class Image:
    """A folder with the board's disk, `kernel`, `initial`, `key`, and `hosts` (the key that its server has)."""

    folder: Path

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.folder / name


def image() -> Image:
    """The image in edgec's cache, which is made where it is not there.

    Raises:
        UnusableInput: a program that makes it is not installed, or Debian's packages cannot be had.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    missing = sorted({package for program, package in _PROGRAMS if shutil.which(program, path=path) is None})
    if missing:
        raise UnusableInput(f"The emulated board needs programs that are not here: apt install {' '.join(missing)}.")
    recipe = [SUITE, _PACKAGES, _MODULES, _START, _INITIAL, _SERVER, _DISK_BYTES]
    place = cache_folder("boards") / f"aarch64-{digest_json(recipe)[:16]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".aarch64-", dir=place.parent) as work:
            made = Path(work) / "made"
            made.mkdir(mode=0o700)
            _make(Path(work), made, {**os.environ, "PATH": path})
            try:
                made.rename(place)
            except OSError:
                # Another process was first.
                if not place.is_dir():
                    raise
    return Image(place)


def _make(work: Path, out: Path, environment: dict[str, str]) -> None:
    archive, root = work / "root.tar", work / "root"
    mode = "root" if os.geteuid() == 0 else "unshare"
    included = f"--include={','.join(_PACKAGES)}"
    command = [
        "mmdebstrap",
        f"--mode={mode}",
        "--variant=extract",
        "--architectures=arm64",
        included,
        SUITE,
        str(archive),
    ]
    if subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
        raise UnusableInput(
            "Debian's packages for the emulated board cannot be had: mmdebstrap failed. See that this machine has a network "
            f"and a mirror of Debian {SUITE}; by hand: mmdebstrap --variant=extract --architectures=arm64 {SUITE} x.tar"
        )
    root.mkdir()
    with tarfile.open(archive) as packed:
        packed.extractall(root, members=_plain(packed), filter="tar")
    for name, kind in (("key", "client"), ("host", "server")):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"edgec {kind}", "-f", str(work / name)]
        _run(keygen, environment)
    (work / "key").rename(out / "key")
    # The name under which the client looks its key up.
    (out / "hosts").write_text(f"edgec-arm64 {(work / 'host.pub').read_text('ascii')}", "ascii")
    _configure(root, work)
    modules = _initial(root, out / "initial")
    if not modules:
        raise UnusableInput("The kernel that Debian gives for the emulated board has another layout than edgec knows.")
    shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), out / "kernel")
    disk = out / "disk"
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    filled = ["mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(root), str(disk)]
    _run(filled, environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, check=False, capture_output=True)
    if done.returncode:
        raise UnusableInput(
            f"The emulated board's disk cannot be made: {command[0]} ended with {done.returncode}. See that the cache's disk "
            "has room for 2 GB."
        )


def _plain(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files, folders and links; the kernel makes the devices."""
    return (each for each in packed if each.isfile() or each.isdir() or each.issym() or each.islnk())


def _configure(root: Path, work: Path) -> None:
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    with (root / "etc/passwd").open("a", encoding="ascii") as file:
        file.write("sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n")
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n", "ascii")
    (root / "etc/ssh/edgec_config").write_text(_SERVER, "ascii")
    shutil.copyfile(work / "key.pub", root / "etc/ssh/edgec_keys")
    shutil.copyfile(work / "host", root / "etc/ssh/ssh_host_ed25519_key")
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (root / "edgec-start").write_text(_START, "ascii")
    (root / "edgec-start").chmod(0o755)


def _initial(root: Path, out: Path) -> list[str]:
    """Write the initial file system: busybox, the modules, and `init`; the modules' names."""
    files = {re.sub(r"\.ko$", "", file.name).replace("-", "_"): file for file in (root / "lib/modules").rglob("*.ko")}
    found = [name for name in _MODULES if name in files]
    entries = [("busybox", (root / "bin/busybox").read_bytes())]
    entries += [(f"{name}.ko", files[name].read_bytes()) for name in found]
    entries.append(("init", _INITIAL.format(modules=" ".join(f"{name}.ko" for name in found)).encode("ascii")))
    with out.open("wb") as file:
        for number, (name, data) in enumerate([*entries, ("TRAILER!!!", b"")], 1):
            mode = 0o100755 if data else 0
            fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
            head = b"070701" + b"".join(b"%08x" % each for each in fields) + name.encode("ascii") + b"\0"
            file.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
    return found
