"""A folder that `docker compose up` serves: llama.cpp's server around a GGUF package, for amd64 and arm64.

The server is the one that llama-cpp-python brings, compiled in the image for the machine that builds it. It is no root, its
file system is read-only, and it starts only when the model's bytes are those of the package. No Docker engine built it here.
"""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from string import Template

from compiler.errors import UnusableInput, missing_extra
from compiler.kit import image_name
from compiler.package import Package
from compiler.task import GENERATION, find_task

PORT = 8000
_TOKENS = 4096
# The package may be called as its model is, with spaces.
_FILE = "model.gguf"

_DOCKERFILE = Template("""# $model as $recipe, digest $digest. Made by edgec; make it again rather than edit it.
FROM python:3.12-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \\
 && apt-get install -y --no-install-recommends build-essential cmake \\
 && rm -rf /var/lib/apt/lists/*
# An image is built for other processors than the one that builds it, so none of its own instructions are taken.
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN pip wheel --no-cache-dir --wheel-dir /wheels "llama-cpp-python[server]==$version"

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \\
 && apt-get install -y --no-install-recommends libgomp1 \\
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-index --find-links /wheels "llama-cpp-python[server]==$version" && rm -rf /wheels
COPY start.py SHA256SUMS $file /model/
USER 10001:10001
EXPOSE $port
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python3", "/model/start.py", "--healthy"]
ENTRYPOINT ["python3", "/model/start.py"]
""")

_COMPOSE = Template("""# docker compose up --build, then http://127.0.0.1:$port/v1/chat/completions
services:
  $name:
    build: .
    image: $name:$short
    read_only: true
    tmpfs: [/tmp]
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    environment:
      TOKENS: "$tokens"
    ports:
      - "127.0.0.1:$port:$port"
    restart: unless-stopped
""")

_START = Template('''"""Start llama.cpp's server on the packaged model; `--healthy` asks a running one."""

import hashlib
import os
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
PORT = os.environ.get("PORT", "$port")


def check() -> Path:
    """The model's file, when its SHA-256 is the package's."""
    wanted, name = (HERE / "SHA256SUMS").read_text("ascii").split()
    found = hashlib.sha256()
    with (HERE / name).open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    if found.hexdigest() != wanted:
        sys.exit(f"{name} is not the file that edgec packaged: its SHA-256 is {found.hexdigest()}, not {wanted}.")
    return HERE / name


if "--healthy" in sys.argv:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=4) as reply:
        sys.exit(reply.status != 200)
words = ["--model", str(check()), "--host", os.environ.get("HOST", "0.0.0.0"), "--port", PORT]
words += ["--n_ctx", os.environ.get("TOKENS", "$tokens"), "--interrupt_requests", "false"$more]
os.execv(sys.executable, [sys.executable, "-m", "llama_cpp.server", *words])
''')

_README = Template("""# $model as $recipe, in a container

    docker compose up --build
    curl http://127.0.0.1:$port/v1/$what -H 'Content-Type: application/json' -d '$body'

The image is built for the machine that builds it; for a Raspberry Pi on another machine:

    docker buildx build --platform linux/arm64 -t $name --load .
    docker save $name | ssh pi@board docker load

The server listens on this machine alone (compose.yaml, `ports`), is no root, can write nothing but /tmp, and asks for no key:
put what does in front of it before others can reach it. It starts only when $file has the SHA-256 in SHA256SUMS. `TOKENS` is
how long a conversation may become. How fast it is: `edgec bench --device http://127.0.0.1:$port`.
""")


def fill_kit(package: Package, folder: Path) -> None:
    """Write Dockerfile, compose.yaml, start.py, SHA256SUMS, README.md and the model.

    Raises:
        UnusableInput: llama-cpp-python, whose version the image takes, is not installed, or the package has several files.
    """
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError as error:
        raise missing_extra("llama-cpp-python", "gguf") from error
    own = package.artifact.name
    if package.lowered.main.files != (own,):
        raise UnusableInput(
            f"{package.title} has more than one file of weights, and the kit takes one. Build it again."
        )
    chats = find_task(package.model.task).kind == GENERATION
    body = '{"messages": [{"role": "user", "content": "Hello"}]}' if chats else '{"input": "A text"}'
    tokens = package.lowered.shapes.context_length or min(package.lowered.shapes.longest_sequence or _TOKENS, _TOKENS)
    given = {
        "model": package.model.name, "recipe": package.recipe, "digest": package.digest, "short": package.digest[:12],
        "version": version, "file": _FILE, "port": PORT, "tokens": tokens, "name": image_name(package.model.name),
        "what": "chat/completions" if chats else "embeddings", "body": body,
        "more": "" if chats else f', "--embedding", "true", "--n_batch", "{tokens}", "--n_ubatch", "{tokens}"',
    }  # fmt: skip
    texts = {"Dockerfile": _DOCKERFILE, "compose.yaml": _COMPOSE, "start.py": _START, "README.md": _README}
    for name, template in texts.items():
        (folder / name).write_text(template.substitute(given), encoding="utf-8")
    shutil.copyfile(package.artifact, folder / _FILE)
    # The image's user is not who owns them.
    for name in ("start.py", _FILE):
        (folder / name).chmod(0o644)
    (folder / "SHA256SUMS").write_text(f"{package.files[own].sha256}  {_FILE}\n", encoding="ascii")
    (folder / "SHA256SUMS").chmod(0o644)
    (folder / ".dockerignore").write_text(f"*\n!start.py\n!SHA256SUMS\n!{_FILE}\n", encoding="utf-8")
