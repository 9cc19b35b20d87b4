"""A folder that deploys a package as an endpoint of SageMaker, on a CPU: `model.tar.gz` and a script.

The container is AWS's own for inference with PyTorch, which installs `code/requirements.txt` when it starts and calls
`code/inference.py`. Nothing of it was run on AWS; the handler is run by the toolkit of that container in edgec's tests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from string import Template

from compiler.formats.archive import members_of, write_tar
from compiler.kit import image_name
from compiler.package import Package
from targets.aws.handler import require_for, write_handler

# aws/deep-learning-containers: the account of most regions, and a CPU image of PyTorch's for SageMaker.
_IMAGE = "763104351884.dkr.ecr.{region}.amazonaws.com/pytorch-inference:2.6.0-cpu-py312-ubuntu22.04-sagemaker"
_INSTANCE = "ml.c5.xlarge"

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
ENVIRONMENT = {
    "SAGEMAKER_PROGRAM": "inference.py",
    "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
    "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
    # Else there is a copy of the model for every processor.
    "SAGEMAKER_MODEL_SERVER_WORKERS": "1",
}
# What the handler needs is installed, and llama-cpp-python compiled, before the container answers.
STARTUP_S = 3600


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
    parser.add_argument("--image", help="of a container with SageMaker's inference toolkit")
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

`model.tar.gz` has the model and its tokenizer and, in `code`, the handler and the names of the libraries that it needs, which
the container installs when it starts: it needs a network to PyPI, and minutes for llama-cpp-python. `deploy.py` makes an
endpoint of it: `python deploy.py --bucket my-bucket --role arn:aws:iam::123456789012:role/sagemaker`, and
`python deploy.py --delete` takes it away. It was not run on AWS: the handler was run here by SageMaker's inference toolkit,
the script against an imitation of AWS's services.

How fast the endpoint is: `edgec bench --device sagemaker:$name`.
""")


def fill_kit(package: Package, folder: Path) -> None:
    """Write model.tar.gz, deploy.py and README.md."""
    require_for(package, "sagemaker")
    name = f"{image_name(package.model.name)[:40]}-{image_name(package.recipe)[:20]}".strip("-")
    given = {
        "model": package.model.name,
        "recipe": package.recipe,
        "name": name,
        "image": _IMAGE,
        "instance": _INSTANCE,
    }
    with tempfile.TemporaryDirectory(prefix="edgec-kit-") as temporary:
        write_handler(package, Path(temporary) / "model")
        write_tar(folder / "model.tar.gz", members_of(Path(temporary) / "model"))
    (folder / "deploy.py").write_text(_DEPLOY.substitute(given), encoding="utf-8")
    (folder / "README.md").write_text(_README.substitute(given), encoding="utf-8")
