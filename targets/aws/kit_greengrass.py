"""A component of AWS IoT Greengrass v2 around a package: a recipe, and an archive with the model, its handler and a server.

The recipe's form: aws-greengrass-gdk-cli, recipe_schema.json, and the developer guide's component recipe reference. Nothing of
it was run by Greengrass; the server is run in edgec's tests from the archive's own layout.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from string import Template

from compiler.formats.archive import members_of, write_zip
from compiler.kit import type_name
from compiler.package import Package
from targets.aws.handler import require_for, write_handler
from targets.aws.texts import mask_word

PORT = 8080
# What Greengrass calls the machines that Python's `platform` names.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "aarch64", "armv7l": "arm"}
_VERSION = "1.0.0"
_INSTALL_S = 3600

_SERVE = Template('''"""Answers requests on this machine alone: POST /invocations, as SageMaker's containers do; GET /ping."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "code"))

import inference  # noqa: E402

MOST_BYTES = 6 * 1024 * 1024
MODEL, TURN = inference.model_fn(str(HERE)), Lock()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200 if self.path == "/ping" else 404, b"")

    def do_POST(self):
        told = self.headers.get("Content-Length", "")
        length = int(told) if told.isdigit() else 0
        if self.path != "/invocations" or not 0 < length <= MOST_BYTES:
            self.answer(404 if self.path != "/invocations" else 413, b"")
            return
        try:
            given = inference.input_fn(self.rfile.read(length), self.headers.get("Content-Type", "application/json"))
            with TURN:
                made = inference.predict_fn(given, MODEL)
            answer = inference.output_fn(made, "application/json").encode()
        except (ValueError, KeyError, TypeError) as error:
            self.answer(400, json.dumps({"error": str(error)}).encode())
            return
        except Exception as error:
            self.answer(500, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
            return
        self.answer(200, answer)

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "$port"))), Handler).serve_forever()
''')

_JSON = """-H 'Content-Type: application/json' -d '{"inputs": %s}'"""
_REQUESTS = {
    "question-answering": _JSON % '{"question": "Where?", "context": "Here."}',
    "image-classification": "-H 'Content-Type: image/jpeg' --data-binary @picture.jpg",
}
_NEEDS = {
    "llamacpp": " llama-cpp-python is compiled there: it needs cmake and a C++ compiler too, and on a Raspberry Pi a while.",
    "dlr": " DLR is compiled for each kind of board: where pip has none for it, neo-ai/neo-ai-dlr's releases may.",
}
_README = Template("""# $model as $recipe, a component of Greengrass

`component.zip` has the model, its handler and a server; `recipe.json` installs and runs it. Put the archive into a bucket that
the device may read, and make the component:

    aws s3 cp component.zip s3://BUCKET/$component/$version/component.zip
    sed -i 's/BUCKET_NAME/BUCKET/' recipe.json
    aws greengrassv2 create-component-version --inline-recipe fileb://recipe.json
    aws greengrassv2 create-deployment --target-arn ARN_OF_YOUR_THING \\
        --components '{"$component": {"componentVersion": "$version"}}'

A version can be made once: raise ComponentVersion in recipe.json, and the folder of its URI, for the next.

The device needs Greengrass's nucleus 2.0.4 or newer, Python 3.11 or newer with venv, and a network for pip.$needs The server
answers on 127.0.0.1:$port alone:

    curl http://127.0.0.1:$port/invocations $request

This kit was not run by Greengrass. edgec's tests run the server of kits of its form from the archive.
""")


def fill_kit(package: Package, folder: Path) -> None:
    """Write component.zip, recipe.json and README.md."""
    require_for(package, "greengrass")
    component = f"org.edgec.{type_name(package.model.name)[:60]}.{type_name(package.recipe)[:40]}"
    given = {
        "model": package.model.name, "recipe": package.recipe, "component": component, "version": _VERSION, "port": PORT,
        "needs": _NEEDS.get(package.lowered.runtime, ""), "request": _request(package),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="edgec-kit-") as temporary:
        root = Path(temporary) / "component"
        write_handler(package, root)
        (root / "serve.py").write_text(_SERVE.substitute(given), encoding="utf-8")
        write_zip(folder / "component.zip", members_of(root))
    recipe = json.dumps(_recipe(package, component), indent=2, ensure_ascii=False)
    (folder / "recipe.json").write_text(f"{recipe}\n", encoding="utf-8")
    (folder / "README.md").write_text(_README.substitute(given), encoding="utf-8")


def _request(package: Package) -> str:
    """What curl sends."""
    if package.model.task == "fill-mask":
        return _JSON % f'"The sea is {mask_word(package)}."'
    return _REQUESTS.get(package.model.task, _JSON % '"A text"')


def _recipe(package: Package, component: str) -> dict[str, object]:
    there, python = "{artifacts:decompressedPath}/component", "{work:path}/venv/bin/python"
    platform: dict[str, str] = {"os": "linux"}
    needs = package.lowered.platform
    if needs is not None and needs.machine in _ARCHITECTURES:
        platform["architecture"] = _ARCHITECTURES[needs.machine]
    install = f"python3 -m venv {{work:path}}/venv && {python} -m pip install -r {there}/code/requirements.txt"
    return {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": component,
        "ComponentVersion": _VERSION,
        "ComponentDescription": f"{package.model.name} as {package.recipe}, packaged by edgec",
        "ComponentPublisher": "edgec",
        "ComponentConfiguration": {"DefaultConfiguration": {"Port": str(PORT)}},
        "Manifests": [
            {
                "Platform": platform,
                "Lifecycle": {
                    "Setenv": {"PORT": "{configuration:/Port}"},
                    "Install": {"Script": install, "Timeout": _INSTALL_S},
                    "Run": {"Script": f"{python} {there}/serve.py"},
                },
                "Artifacts": [
                    {"URI": f"s3://BUCKET_NAME/{component}/{_VERSION}/component.zip", "Unarchive": "ZIP"},
                ],
            }
        ],
    }
