"""The script of a SageMaker kit, and where AWS keeps the images of containers.

Accounts: aws/sagemaker-python-sdk a2481266 (2026-08), image_uri_config/djl-lmi.json (0.36.0) and neo-pytorch.json (2.0).
Domains: botocore's partitions.json.
"""

from __future__ import annotations

from string import Template

# The account of AWS's deep-learning containers: that of most regions, and where it is another.
CONTAINERS = {
    "others": "763104351884",
    "af-south-1": "626614931356", "ap-east-1": "871362719292", "ap-east-2": "975050140332", "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452", "ap-southeast-3": "907027046896", "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462", "ap-southeast-6": "633930458069", "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572", "cn-north-1": "727897471807", "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688", "eu-south-1": "692866216735", "eu-south-2": "503227376785",
    "il-central-1": "780543022126", "me-central-1": "914824155844", "me-south-1": "217643126080",
    "mx-central-1": "637423239942", "us-gov-east-1": "446045086412", "us-gov-west-1": "442386744353",
    "us-iso-east-1": "886529160074", "us-isob-east-1": "094389454867", "us-isof-east-1": "303241398832",
    "us-isof-south-1": "454834333376", "eu-isoe-west-1": "371248457586", "eusc-de-east-1": "204133271717",
}  # fmt: skip
# Of the containers for what Neo compiled of PyTorch's; other regions have none.
NEO_PYTORCH = {
    "af-south-1": "774647643957", "ap-east-1": "110948597952", "ap-northeast-1": "941853720454",
    "ap-northeast-2": "151534178276", "ap-northeast-3": "925152966179", "ap-south-1": "763008648453",
    "ap-southeast-1": "324986816169", "ap-southeast-2": "355873309152", "ca-central-1": "464438896020",
    "cn-north-1": "472730292857", "cn-northwest-1": "474822919863", "eu-central-1": "746233611703",
    "eu-central-2": "010526262399", "eu-north-1": "601324751636", "eu-south-1": "966458181534",
    "eu-west-1": "802834080501", "eu-west-2": "205493899709", "eu-west-3": "254080097072",
    "il-central-1": "275950707576", "me-south-1": "836785723513", "sa-east-1": "756306329178",
    "us-east-1": "785573368785", "us-east-2": "007439368137", "us-gov-east-1": "227234621604",
    "us-gov-west-1": "263933020539", "us-iso-east-1": "167761179201", "us-isob-east-1": "406031935815",
    "us-isof-east-1": "751086301963", "us-isof-south-1": "935523707064", "us-west-1": "710691900526",
    "us-west-2": "301217895009",
}  # fmt: skip
# By the beginning of a region's name.
DOMAINS = {
    "cn-": "amazonaws.com.cn", "us-iso-": "c2s.ic.gov", "us-isob-": "sc2s.sgov.gov", "us-isof-": "csp.hci.ic.gov",
    "eu-isoe-": "cloud.adc-e.uk", "eusc-": "amazonaws.eu",
}  # fmt: skip

DEPLOY = Template('''"""Deploys $model as $recipe.

    python deploy.py --bucket my-bucket --role arn:aws:iam::123456789012:role/sagemaker

Makes a model, an endpoint's configuration and an endpoint, all of one name; --delete takes them away again. What runs costs
money by the hour. Needs boto3, credentials and a region, as the AWS command line has them. Made by edgec; not run on AWS.
"""

import argparse
from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError, WaiterError

HERE = Path(__file__).parent
NAME = "$name"
IMAGE = "$image"
# AWS's account that has the image, by region; the first where a region is not named.
ACCOUNTS = $accounts
DOMAINS = $domains
ENVIRONMENT = $environment
STARTUP_S = $startup


def image_of(region):
    """Where the image lies for a region."""
    account = ACCOUNTS.get(region, ACCOUNTS.get("others"))
    if account is None:
        raise SystemExit(f"AWS names no account with {IMAGE} in {region}. Take another region, or name an image by --image.")
    domain = next((name for start, name in DOMAINS.items() if region.startswith(start)), "amazonaws.com")
    return f"{account}.dkr.ecr.{region}.{domain}/{IMAGE}"


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
    try:
        service.get_waiter("endpoint_in_service").wait(EndpointName=name)
    except WaiterError:
        told = service.describe_endpoint(EndpointName=name)
        reason = told.get("FailureReason") or "AWS tells no reason; the container's log in CloudWatch may"
        raise SystemExit(f"{name} does not serve ({told['EndpointStatus']}): {reason}. --delete takes it away.") from None
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
    if session.get_credentials() is None:
        parser.error("there are no AWS credentials: `aws configure` sets them up")
    if given.delete:
        delete(session, given.name)
        print("What was sent stays in the bucket, in edgec/" + given.name)
        return
    if not given.bucket or not given.role:
        parser.error("--bucket and --role are needed")
    image = given.image or image_of(session.region_name)
    print(deploy(session, given.bucket, given.role, given.name, image, given.instance), "serves")


if __name__ == "__main__":
    try:
        main()
    except ClientError as error:
        told = error.response.get("Error", {})
        raise SystemExit(f"AWS refused {error.operation_name} ({told.get('Code')}): {told.get('Message')}") from None
    except (BotoCoreError, Boto3Error) as error:
        raise SystemExit(f"AWS could not be asked: {error}") from None
''')
