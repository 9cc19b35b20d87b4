"""A folder that deploys a package as an endpoint of SageMaker, on a CPU: `model.tar.gz` and a script.

Encoders are served by a handler in DJL Serving's container, language models by llama.cpp's server in AWS's container of it;
both are in aws/deep-learning-containers. Nothing of it was run on AWS; what edgec's tests run is said in docs/aws.md.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template

from compiler.formats.archive import members_of, write_tar
from compiler.kit import image_name
from compiler.package import Package
from compiler.task import GENERATION, find_task
from targets.aws.djl import write_serving
from targets.aws.generate import GGUF, context_tokens, require_gguf
from targets.aws.handler import require_for, write_handler

# The account that has AWS's containers in most regions.
_REGISTRY = "763104351884.dkr.ecr.{region}.amazonaws.com"


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
    """

    image: str
    instance: str
    environment: dict[str, str]
    startup_s: int
    request: str
    start: str


_REQUESTS = {
    "text-generation": '{"inputs": "a text", "parameters": {"max_new_tokens": 64}}, or messages as OpenAI\'s chats have them',
    "question-answering": '{"inputs": {"question": "a question", "context": "a text"}}',
}

_DEPLOY = Template('''"""Deploys $model as $recipe.

    python deploy.py --bucket my-bucket --role arn:aws:iam::123456789012:role/sagemaker

Makes a model, an endpoint's configuration and an endpoint, all of one name; --delete takes them away again. What runs costs
money by the hour. Needs boto3, credentials and a region, as the AWS command line has them. Made by edgec; not run on AWS.
"""

import argparse
from pathlib import Path

import boto3

HERE = Path(__file__).parent
NAME = "$name"
IMAGE = "$image"
ENVIRONMENT = $environment
STARTUP_S = $startup


def deploy(session, bucket, role, name, image, instance):
    """The endpoint's name, when it serves."""
    key = f"edgec/{name}/model.tar.gz"
    session.client("s3").upload_file(str(HERE / "model.tar.gz"), bucket, key)
    service = session.client("sagemaker")
    container = {"Image": image, "ModelDataUrl": f"s3://{bucket}/{key}", "Environment": ENVIRONMENT}
    service.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=role)
    variant = {"VariantName": "main", "ModelName": name, "InitialInstanceCount": 1, "InstanceType": instance}
    variant["ContainerStartupHealthCheckTimeoutInSeconds"] = STARTUP_S
    service.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    service.create_endpoint(EndpointName=name, EndpointConfigName=name)
    service.get_waiter("endpoint_in_service").wait(EndpointName=name)
    return name


def delete(session, name):
    """Take away the endpoint, its configuration and the model; what is not there is no error."""
    service = session.client("sagemaker")
    for call, word in (("delete_endpoint", "EndpointName"), ("delete_endpoint_config", "EndpointConfigName"),
                       ("delete_model", "ModelName")):
        try:
            getattr(service, call)(**{word: name})
        except service.exceptions.ClientError as error:
            if "Could not find" not in str(error):
                raise


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bucket", help="in the region of the endpoint")
    parser.add_argument("--role", help="ARN of a role that SageMaker takes")
    parser.add_argument("--name", default=NAME)
    parser.add_argument("--instance", default="$instance")
    parser.add_argument("--image", help="of another container of the same kind")
    parser.add_argument("--delete", action="store_true")
    given = parser.parse_args()
    session = boto3.session.Session()
    if not session.region_name:
        parser.error("no region is set: AWS_DEFAULT_REGION, or the AWS command line's")
    if given.delete:
        delete(session, given.name)
        print("What was sent stays in the bucket, in edgec/" + given.name)
        return
    if not given.bucket or not given.role:
        parser.error("--bucket and --role are needed")
    image = given.image or IMAGE.format(region=session.region_name)
    print(deploy(session, given.bucket, given.role, given.name, image, given.instance), "serves")


if __name__ == "__main__":
    main()
''')

_README = Template("""# $model as $recipe, for SageMaker

`deploy.py` makes an endpoint of `model.tar.gz`:

    python deploy.py --bucket my-bucket --role arn:aws:iam::123456789012:role/sagemaker
    python deploy.py --delete

The container is AWS's own, `$image`, on $instance; --image and --instance name others. $start A request is

    $request

It was not run on AWS: what is in the archive was run here, and the script against an imitation of AWS's services.

How fast the endpoint is: `edgec bench --device sagemaker:$name`.
""")


def fill_kit(package: Package, folder: Path) -> None:
    """Write model.tar.gz, deploy.py and README.md."""
    require_for(package, "sagemaker")
    name = f"{image_name(package.model.name)[:40]}-{image_name(package.recipe)[:20]}".strip("-")
    with tempfile.TemporaryDirectory(prefix="edgec-kit-") as temporary:
        model = Path(temporary) / "model"
        language = find_task(package.model.task).kind == GENERATION
        if language and package.lowered.runtime != "ortgenai":
            container = _fill_llamacpp(package, model)
        else:
            container = _fill_djl(package, model)
        write_tar(folder / "model.tar.gz", members_of(model))
    given = {
        "model": package.model.name,
        "recipe": package.recipe,
        "name": name,
        "image": f"{_REGISTRY}/{container.image}",
        "instance": container.instance,
        "environment": json.dumps(container.environment, indent=4),
        "startup": container.startup_s,
        "request": container.request,
        "start": container.start,
    }
    (folder / "deploy.py").write_text(_DEPLOY.substitute(given), encoding="utf-8")
    (folder / "README.md").write_text(_README.substitute(given), encoding="utf-8")


def _fill_djl(package: Package, folder: Path) -> _Container:
    """DJL Serving: files beside the model say what it is, OPTION_* what depends on the machine."""
    write_handler(package, folder)
    write_serving(folder)
    return _Container(
        image="djl-inference:0.36.0-cpu-full",
        instance="ml.c5.xlarge",
        environment={"OPTION_MODEL_LOADING_TIMEOUT": "600", "OPTION_PREDICT_TIMEOUT": "60"},
        startup_s=1200,
        request=_REQUESTS.get(package.model.task, '{"inputs": "a text"}, or a list of texts'),
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
