"""Creates in the emulated AWS what a SAM template describes: buckets, secrets, functions, state machines.

Roles, policies, alarms and the like are not created; references to them get made-up names. What was left
out is reported, so that nobody takes a local run for a test of them.
"""

import hashlib
import io
import json
import platform
import secrets as randomness
import shutil
import subprocess
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from botocore.config import Config

from stack.components import ACCOUNT, CREDENTIALS, REGION, Aws
from stack.function_url import FunctionUrl
from stack.template import Template, TemplateError, parse

STACK_NAME = "kopsline"
_DIRECT_UPLOAD_LIMIT = 50 * 1024 * 1024
"""Lambda's limit for a zip sent along with CreateFunction."""


def client(service: str, url: str):
    """A boto3 client of the emulated AWS; it does not retry, so that faults show."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        config=Config(
            retries={"max_attempts": 0},
            read_timeout=900,
            inject_host_prefix=False,
            s3={"addressing_style": "path"},
        ),
    )


def local_environment(aws: Aws) -> dict[str, str]:
    """What makes SDKs and kOps, inside functions and outside, talk to the emulated AWS."""
    return {
        "AWS_ENDPOINT_URL": aws.moto_url,
        "AWS_ENDPOINT_URL_SFN": aws.sfn_url,
        "AWS_ENDPOINT_URL_LAMBDA": aws.lambda_url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "S3_ENDPOINT": aws.moto_url,
        "S3_REGION": REGION,
        "S3_ACCESS_KEY_ID": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "S3_SECRET_ACCESS_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        # kOps would ask registries for image digests, and plan differently when it cannot.
        "KOPS_FEATURE_FLAGS": "-ImageDigest",
        **CREDENTIALS,
    }


def create_bucket(aws: Aws, bucket: str, versioning: str = "Enabled") -> None:
    """Makes a bucket."""
    s3 = client("s3", aws.moto_url)
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": versioning})


def upload_kops(aws: Aws, bucket: str, version: str, binary: Path) -> None:
    """Puts a kops binary and its checksum where the functions look for it first."""
    s3 = client("s3", aws.moto_url)
    content = binary.read_bytes()
    key = f"kops/{version}/linux/{KOPS_ARCHITECTURES[architecture()]}/kops"
    s3.put_object(Bucket=bucket, Key=key, Body=content)
    s3.put_object(Bucket=bucket, Key=key + ".sha256", Body=hashlib.sha256(content).hexdigest().encode())


def architecture() -> str:
    """This machine's processor, as Lambda calls it."""
    return {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]


KOPS_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
"""Lambda's names of processors, and kOps' names of the same."""


@dataclass
class Request:
    """What to deploy and with which local values."""

    template: Path
    functions: Path | None
    parameters: dict[str, str]
    secrets: dict[str, str]
    environment: dict[str, str]


@dataclass
class Deployed:
    """What was created, by logical id."""

    buckets: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    function_urls: dict[str, str] = field(default_factory=dict)
    state_machines: dict[str, str] = field(default_factory=dict)
    not_created: list[str] = field(default_factory=list)
    fronts: list[FunctionUrl] = field(default_factory=list)

    def report(self) -> dict:
        """What of it goes into the stack's JSON line."""
        return {name: value for name, value in vars(self).items() if name != "fronts"}


def deploy(aws: Aws, request: Request) -> Deployed:
    """Creates everything and returns it; `TemplateError` when the template or a binary is not as needed."""
    return _Deployment(aws, request).run()


class _Deployment:
    def __init__(self, aws: Aws, request: Request):
        self.aws = aws
        self.request = request
        self.done = Deployed()
        self.secret_arns: dict[str, str] = {}
        self.urls: dict[str, FunctionUrl] = {}
        body = parse(request.template.read_text())
        self.template = Template(
            body=body,
            directory=request.template.parent,
            parameters=request.parameters,
            pseudo={
                "AWS::Region": REGION,
                "AWS::AccountId": ACCOUNT,
                "AWS::Partition": "aws",
                "AWS::StackName": STACK_NAME,
                "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{STACK_NAME}/local",
                "AWS::URLSuffix": "amazonaws.com",
            },
            references=self.reference,
            attributes=self.attribute,
        )

    def run(self) -> Deployed:
        kinds = {
            "AWS::S3::Bucket": self.create_bucket,
            "AWS::SecretsManager::Secret": self.create_secret,
            "AWS::Serverless::Function": self.create_function,
            "AWS::Serverless::StateMachine": self.create_state_machine,
        }
        resources = self.template.resources()
        for name, resource in resources.items():
            if resource["Type"] not in kinds:
                self.done.not_created.append(f"{name} ({resource['Type']})")
            if resource["Type"] == "AWS::Serverless::Function" and "FunctionUrlConfig" in resource.get(
                "Properties", {}
            ):
                self.urls[name] = FunctionUrl(self.aws.lambda_url)
        # In this order, because a secret's ARN is known only once it exists; what is of one kind, at once.
        with ThreadPoolExecutor() as pool:
            for kind, create in kinds.items():
                names = [name for name, resource in resources.items() if resource["Type"] == kind]
                list(pool.map(lambda name, create=create: create(name, self.template.properties(name)), names))
        return self.done

    # --- Names, before anything exists ---

    def kind(self, name: str) -> str:
        resource = self.template.body["Resources"].get(name)
        if resource is None:
            # SAM makes `<function>Url`, `<function>Role` and more beside what is written.
            return "AWS::Lambda::Url" if name.removesuffix("Url") in self.urls else "generated"
        return resource["Type"]

    def name(self, name: str) -> str:
        """A resource's physical name: its own, or one in the manner of CloudFormation."""
        resource = self.template.body["Resources"].get(name) or {}
        properties = resource.get("Properties") or {}
        for key in ("BucketName", "FunctionName", "Name", "RoleName", "TableName", "TopicName", "QueueName"):
            if key in properties:
                return str(self.template.value(properties[key], name))
        if self.kind(name) == "AWS::S3::Bucket":
            return f"{STACK_NAME}-{name.lower()}"
        return f"{STACK_NAME}-{name}"

    def arn(self, name: str) -> str:
        physical = self.name(name)
        match self.kind(name):
            case "AWS::S3::Bucket":
                return f"arn:aws:s3:::{physical}"
            case "AWS::SecretsManager::Secret":
                return self.secret_arns[name]
            case "AWS::Serverless::Function":
                return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{physical}"
            case "AWS::Serverless::StateMachine":
                return f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{physical}"
            case "AWS::IAM::Role":
                return f"arn:aws:iam::{ACCOUNT}:role/{physical}"
            case other:
                return (
                    f"arn:aws:{other.split('::')[1].lower() if '::' in other else 'iam'}:{REGION}:{ACCOUNT}:{physical}"
                )

    def reference(self, name: str) -> str:
        if self.kind(name) in ("AWS::SecretsManager::Secret", "AWS::Serverless::StateMachine"):
            return self.arn(name)
        return self.name(name)

    def attribute(self, name: str, attribute: str) -> str:
        if attribute == "FunctionUrl":
            return self.urls[name.removesuffix("Url")].url
        if attribute == "Name":
            return self.name(name)
        if attribute.endswith("Arn") or attribute == "Id":
            return self.arn(name)
        if attribute.endswith("DomainName"):
            return f"{self.name(name)}.s3.amazonaws.com"
        raise TemplateError(f"{name}: attribute {attribute} is not known here")

    # --- Resources ---

    def create_bucket(self, name: str, properties: dict) -> None:
        bucket = self.name(name)
        versioning = properties.get("VersioningConfiguration") or {}
        create_bucket(self.aws, bucket, versioning.get("Status", "Suspended"))
        self.done.buckets[name] = bucket

    def create_secret(self, name: str, properties: dict) -> None:
        value = self.request.secrets.get(name, properties.get("SecretString"))
        if value is None and (generate := properties.get("GenerateSecretString")):
            value = randomness.token_urlsafe(32)
            if key := generate.get("GenerateStringKey"):
                value = json.dumps({**json.loads(generate["SecretStringTemplate"]), key: value})
        content = {} if value is None else {"SecretString": value}
        created = client("secretsmanager", self.aws.moto_url).create_secret(Name=self.name(name), **content)
        self.secret_arns[name] = self.done.secrets[name] = created["ARN"]

    def create_function(self, name: str, properties: dict) -> None:
        lambda_ = client("lambda", self.aws.lambda_url)
        function = self.name(name)
        package = self.package(name)
        if len(package) > _DIRECT_UPLOAD_LIMIT:
            raise TemplateError(f"{name}: its zip has {len(package)} bytes, Lambda takes {_DIRECT_UPLOAD_LIMIT}")
        variables = (properties.get("Environment") or {}).get("Variables") or {}
        lambda_.create_function(
            FunctionName=function,
            Runtime=properties.get("Runtime", "provided.al2023"),
            Role=f"arn:aws:iam::{ACCOUNT}:role/{function}",
            Handler=properties.get("Handler", "bootstrap"),
            Code={"ZipFile": package},
            Architectures=properties.get("Architectures", ["x86_64"]),
            MemorySize=int(properties.get("MemorySize", 128)),
            Timeout=int(properties.get("Timeout", 3)),
            EphemeralStorage=properties.get("EphemeralStorage", {"Size": 512}),
            Environment={
                "Variables": {key: _text(value) for key, value in variables.items()}
                | _without_reserved(local_environment(self.aws))
                | self.request.environment
            },
        )
        lambda_.get_waiter("function_active_v2").wait(
            FunctionName=function, WaiterConfig={"Delay": 0.2, "MaxAttempts": 300}
        )
        if concurrency := properties.get("ReservedConcurrentExecutions"):
            lambda_.put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=int(concurrency))
        if front := self.urls.get(name):
            config = properties["FunctionUrlConfig"]
            created = lambda_.create_function_url_config(
                FunctionName=function,
                AuthType=config.get("AuthType", "NONE"),
                InvokeMode=config.get("InvokeMode", "BUFFERED"),
            )
            front.connect(created["FunctionUrl"])
            self.done.fronts.append(front)
            self.done.function_urls[name] = front.url
        self.done.functions[name] = function

    def package(self, name: str) -> bytes:
        """A function's zip, from where `sam build`, `cargo lambda build` or `cargo build` left its binary."""
        if self.request.functions is None:
            raise TemplateError(f"{name} is a function: say where the binaries are with --functions")
        metadata = self.template.body["Resources"][name].get("Metadata") or {}
        binary = (metadata.get("BuildProperties") or {}).get("Binary", name)
        root = self.request.functions
        folders = [root / folder for folder in (name, binary)]
        for folder in folders:
            if (folder / "bootstrap.zip").is_file():
                return (folder / "bootstrap.zip").read_bytes()
            if (folder / "bootstrap").is_file():
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                return _zip({str(file.relative_to(folder)): file for file in files})
        if (root / f"{binary}.zip").is_file():
            return (root / f"{binary}.zip").read_bytes()
        if (root / binary).is_file():
            with tempfile.TemporaryDirectory() as scratch:
                return _zip({"bootstrap": _stripped(root / binary, Path(scratch))})
        raise TemplateError(f"{name}: no {binary}/bootstrap, {binary}.zip or {binary} below {root}")

    def create_state_machine(self, name: str, properties: dict) -> None:
        definition = self.definition(name, properties)
        created = client("stepfunctions", self.aws.sfn_url).create_state_machine(
            name=self.name(name),
            definition=definition,
            roleArn=f"arn:aws:iam::{ACCOUNT}:role/{self.name(name)}",
            type=properties.get("Type", "STANDARD"),
        )
        self.done.state_machines[name] = created["stateMachineArn"]

    def definition(self, name: str, properties: dict) -> str:
        """A state machine's definition with `${...}` replaced, as SAM does."""
        if "DefinitionUri" in properties:
            text = (self.template.directory / properties["DefinitionUri"]).read_text()
        elif "Definition" in properties:
            text = json.dumps(properties["Definition"])
        else:
            raise TemplateError(f"{name}: neither DefinitionUri nor Definition")
        for key, value in (properties.get("DefinitionSubstitutions") or {}).items():
            text = text.replace("${" + key + "}", _text(value))
        if not text.lstrip().startswith("{"):
            text = json.dumps(parse(text))
        return text


def _without_reserved(variables: dict[str, str]) -> dict[str, str]:
    """Lambda sets these itself and refuses them."""
    reserved = {"AWS_REGION", "AWS_DEFAULT_REGION", *CREDENTIALS}
    return {name: value for name, value in variables.items() if name not in reserved}


def _text(value: object) -> str:
    """A property's value as CloudFormation passes it on."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _zip(files: dict[str, Path]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, file in files.items():
            entry = zipfile.ZipInfo(name, time.gmtime()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
            archive.writestr(entry, file.read_bytes())
    return packed.getvalue()


def _stripped(binary: Path, scratch: Path) -> Path:
    """A copy of a binary without debug information, which `cargo build` leaves in; as it is if that fails."""
    copy = scratch / "bootstrap"
    shutil.copy2(binary, copy)
    if shutil.which("strip"):
        subprocess.run(["strip", copy], capture_output=True)
    return copy
