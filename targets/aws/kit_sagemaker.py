"""A folder that deploys a package as an endpoint of SageMaker, on a CPU: `model.tar.gz` and a script.

Encoders are served by a handler in DJL Serving's container, language models by llama.cpp's server in AWS's container of it;
both are in aws/deep-learning-containers. Nothing of it was run on AWS; what edgec's tests run is said in docs/aws.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from compiler.errors import UnusableInput
from compiler.formats.archive import members_of, write_tar
from compiler.formats.json_file import read_object
from compiler.kit import image_name
from compiler.package import Package
from compiler.task import GENERATION, find_task
from targets.aws.deploy_script import CONTAINERS, DEPLOY, DOMAINS, NEO_PYTORCH
from targets.aws.djl import write_serving
from targets.aws.generate import GGUF, context_tokens, require_gguf
from targets.aws.handler import require_for, write_handler
from targets.aws.openers import is_neo_pytorch


@dataclass(frozen=True)
class _Container:
    """What runs on the instance.

    Attributes:
        image: of the container, without its registry.
        instance: the type of machine that is taken unless another is asked for.
        environment: variables of the container.
        startup_s: it may take to answer first.
        request: what it takes.
        start: what it does when it starts.
        accounts: of AWS's that have the image.
    """

    image: str
    instance: str
    environment: dict[str, str]
    startup_s: int
    request: str
    start: str
    accounts: Mapping[str, str] = field(default_factory=lambda: CONTAINERS)


_REQUESTS = {
    "text-generation": '{"inputs": "a text", "parameters": {"max_new_tokens": 64}}, or messages as OpenAI\'s chats have them',
    "question-answering": '{"inputs": {"question": "a question", "context": "a text"}}',
    "image-classification": 'a picture, as image/jpeg or image/png, or {"inputs": "its bytes in base64"}',
}

_OF_TEXTS = '{"inputs": "a text"}, or a list of texts'
# Neo's cloud targets with a GPU, and the smallest machine of each.
_WITH_GPU = {"ml_g4dn": "xlarge", "ml_p2": "xlarge", "ml_p3": "2xlarge"}

_README = Template("""# $model as $recipe, for SageMaker

`deploy.py` makes an endpoint of `model.tar.gz`:

    python deploy.py --bucket my-bucket --role arn:aws:iam::123456789012:role/sagemaker
    python deploy.py --delete

The container is AWS's own, `$image`, on $instance; --image and --instance name others. $start A request is

    $request

This kit was not run on AWS. edgec's tests run kits of its form: what is in the archive on their machine, the script against
an imitation of AWS's services.
$measure""")


def fill_kit(package: Package, folder: Path) -> None:
    """Write model.tar.gz, deploy.py and README.md."""
    require_for(package, "sagemaker")
    name = f"{image_name(package.model.name)[:40]}-{image_name(package.recipe)[:20]}".strip("-")
    with tempfile.TemporaryDirectory(prefix="edgec-kit-") as temporary:
        model = Path(temporary) / "model"
        language = find_task(package.model.task).kind == GENERATION
        if package.lowered.runtime == "dlr":
            container = _fill_neo(package, model)
        elif language and package.lowered.runtime != "ortgenai":
            container = _fill_llamacpp(package, model)
        else:
            container = _fill_djl(package, model)
        write_tar(folder / "model.tar.gz", members_of(model))
    given = {
        "model": package.model.name,
        "recipe": package.recipe,
        "name": name,
        "image": container.image,
        "accounts": json.dumps(dict(container.accounts), indent=4),
        "domains": json.dumps(DOMAINS, indent=4),
        "instance": container.instance,
        "environment": json.dumps(container.environment, indent=4),
        "startup": container.startup_s,
        "request": container.request,
        "start": container.start,
        # It sends texts, chats and questions.
        "measure": f"\nHow fast the endpoint is: `edgec bench --device sagemaker:{name}`.\n"
        if _is_of_texts(package)
        else "",
    }
    (folder / "deploy.py").write_text(DEPLOY.substitute(given), encoding="utf-8")
    (folder / "README.md").write_text(_README.substitute(given), encoding="utf-8")


def _is_of_texts(package: Package) -> bool:
    return package.model.task not in ("image-classification", "fill-mask")


def _fill_neo(package: Package, folder: Path) -> _Container:
    """What Neo compiled of PyTorch's, in AWS's container for those: its files, and the toolkit's handler beside them."""
    if not is_neo_pytorch(package):
        raise UnusableInput(
            f"{package.title} is for a board, with DLR; AWS lists containers for what Neo compiled of PyTorch's, MXNet's and "
            "TensorFlow's alone. `edgec kit --for greengrass` takes it."
        )
    write_handler(package, folder)
    device = str(package.recipe_full.get("variant"))
    processor = "gpu" if device in _WITH_GPU else "cpu"
    version = str(read_object(package.folder / "job.json").get("version"))
    return _Container(
        image=f"sagemaker-inference-pytorch:{version}-{processor}-py3",
        instance=f"{device.replace('_', '.')}.{_WITH_GPU.get(device, 'xlarge')}",
        environment={"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"},
        startup_s=1200,
        request=_REQUESTS.get(package.model.task, _OF_TEXTS),
        start="It installs code/requirements.txt when it starts, for which it needs a network to PyPI.",
        accounts=NEO_PYTORCH,
    )


def _fill_djl(package: Package, folder: Path) -> _Container:
    """DJL Serving: files beside the model say what it is, OPTION_* what depends on the machine."""
    write_handler(package, folder)
    write_serving(folder)
    return _Container(
        image="djl-inference:0.36.0-cpu-full",
        instance="ml.c5.xlarge",
        environment={"OPTION_MODEL_LOADING_TIMEOUT": "600", "OPTION_PREDICT_TIMEOUT": "60"},
        startup_s=1200,
        request=_REQUESTS.get(package.model.task, _OF_TEXTS),
        start="It installs requirements.txt when it starts, for which it needs a network to PyPI.",
    )


def _fill_llamacpp(package: Package, folder: Path) -> _Container:
    """llama.cpp's server, which takes a GGUF file as it is; its options by SM_LLAMA_CPP_*."""
    require_gguf(package)
    folder.mkdir()
    shutil.copyfile(package.folder / package.lowered.main.files[0], folder / GGUF)
    return _Container(
        image="llama-cpp:server-sagemaker-cpu-v1",
        instance="ml.c6i.2xlarge",
        environment={"SM_LLAMA_CPP_CTX_SIZE": str(context_tokens(package))},
        startup_s=1200,
        request='{"messages": [{"role": "user", "content": "a text"}], "max_tokens": 64}, as OpenAI\'s chats are',
        start="It serves the archive's GGUF file.",
    )
