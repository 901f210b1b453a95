"""SAM builds the functions, and `sam local invoke` takes each of them through its part of a run, in a container.

Runs in the aws virtual environment with tests/ on the path, STACK_LOCALSTACK_PYTHON, STACK_KOPS and KOPSLINE_SAM set;
see tools/test. The containers' image is a stand-in made from Debian's packages, not Amazon Linux.
"""

import concurrent.futures
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from sam.docker import Docker, DockerMissing
from sam.forward import Forwarder
from stack.template import parse
from stack.test_stack import Running

ROOT = Path(__file__).resolve().parent.parent.parent
EVENTS = ROOT / "tests/events"
DEMO = ROOT / "tests/fixtures/demo"
VALUES = ROOT / "tests/stack/kopsline-values.json"
ARCHITECTURE = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
FUNCTIONS = ["Webhook", "Replace", "Plan", "Update", "Roll", "Console"]
KOPS_VERSION = re.search(r"k8s\.io/kops v(\S+)", (ROOT / "tools/kops/go.mod").read_text())[1]

KOPSLINE_YAML = f"""
version: 1
clusters:
  - name: demo.k8s.example.com
    stateStore: s3://kops-state
    region: us-east-1
    kops: {{version: {KOPS_VERSION}}}
    sources: [cluster.yaml]
    approvals: {{update: automatic, roll: automatic}}
    rollingUpdate: {{cloudonly: true}}
"""


def sam(*arguments, **options):
    """Runs sam; its tools (cargo-lambda, zig) are beside it."""
    binaries = os.environ["KOPSLINE_SAM"]
    environment = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "SAM_CLI_TELEMETRY": "0",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    environment |= options.pop("environment", {})
    return subprocess.run(
        [f"{binaries}/sam", *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, **options
    )


def event(name, **changes):
    """A sample event with some of its fields changed."""
    return json.loads((EVENTS / f"{name}.json").read_text()) | changes


class SamLocalInvoke(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = Path(tempfile.mkdtemp(prefix="kopsline-sam-"))
        cls.addClassCleanup(shutil.rmtree, folder, ignore_errors=True)
        cls.folder = folder
        parameters = cls.parameters()
        cls.built = folder / "built"
        build = sam("build", "--build-dir", cls.built, "--parameter-overrides", *parameters, timeout=3600)
        if build.returncode:
            raise AssertionError(f"sam build: {build.stderr[-4000:]}")
        try:
            cls.docker = cls.enterClassContext(Docker())
        except DockerMissing as missing:
            raise unittest.SkipTest(str(missing)) from missing
        cls.image = cls.docker.import_stand_in()
        cls.stack = Running(
            folder / "stack",
            *("--template", str(ROOT / "template.yaml"), "--functions", str(cls.built), "--values", str(VALUES)),
            *("--kops", f"{KOPS_VERSION}={os.environ['STACK_KOPS']}"),
            *("--content", str(cls.content()), "--replace", "https://kops-files.example.com={files_url}"),
        )
        cls.addClassCleanup(cls.stack.stop)
        cls.forwarder = Forwarder(cls.docker.bridge_address(cls.image))
        cls.addClassCleanup(cls.forwarder.close)
        cls.template = cls.template_for_containers()
        cls.commit = cls.commit_for_containers()

    @staticmethod
    def parameters():
        """Parameters without a default, as sam wants them. Their values matter to the deployed stack alone."""
        values = json.loads(VALUES.read_text())["parameters"]
        plain = {name: value for name, value in values.items() if "{" not in value and " " not in value}
        return [f"{name}={value}" for name, value in ({"AllowedProjects": "x"} | plain | {"Architecture": ARCHITECTURE}).items()]

    @classmethod
    def content(cls):
        """The sample repository with automatic approvals."""
        folder = cls.folder / "content"
        shutil.copytree(DEMO, folder)
        (folder / "kopsline.yaml").write_text(KOPSLINE_YAML)
        return folder

    @classmethod
    def template_for_containers(cls):
        """The built template, each function with the environment it has in the deployed stack.

        sam passes on only variables that the template names, and loopback is the container's own there.
        """
        template = parse((cls.built / "template.yaml").read_text())
        functions = cls.stack.aws("lambda")
        for name in FUNCTIONS:
            deployed = functions.get_function_configuration(FunctionName=cls.stack.report["functions"][f"{name}Function"])
            properties = template["Resources"][f"{name}Function"]["Properties"]
            properties["CodeUri"] = str(cls.built / f"{name}Function")
            variables = {key: cls.forwarder.reachable(value) for key, value in deployed["Environment"]["Variables"].items()}
            properties["Environment"] = {"Variables": variables}
        template["Globals"]["Function"].pop("Environment")
        path = cls.folder / "template.json"
        path.write_text(json.dumps(template))
        return path

    @classmethod
    def commit_for_containers(cls):
        """The id of a commit whose manifest names the file server as kops in a container reaches it."""
        gitlab = cls.stack.report["gitlab"]
        git = ["git", "--git-dir", gitlab["repository"]]
        manifest = subprocess.check_output([*git, "show", f"{gitlab['default_branch']}:cluster.yaml"], text=True)
        order = {"project": gitlab["project"], "files": {"cluster.yaml": cls.forwarder.reachable(manifest)}}
        request = urllib.request.Request(f"{gitlab['url']}/_control/commit", json.dumps(order).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["after"]

    def invoke(self, function, given):
        """The function's answer. sam ends well even when the function fails: its answer tells."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", dir=self.folder) as file:
            json.dump(given, file)
            file.flush()
            done = sam(
                *("local", "invoke", f"{function}Function", "--template", self.template, "--event", file.name),
                *("--invoke-image", self.image, "--skip-pull-image", "--parameter-overrides", *self.parameters()),
                environment=self.docker.environment,
                timeout=300,
            )
        for line in reversed(done.stdout.splitlines()):
            with contextlib.suppress(ValueError):
                return json.loads(line)
        self.fail(f"{function} answered nothing:\n{done.stdout}\n{done.stderr[-4000:]}")

    def invoke_all(self, given):
        """The answers to (function, event) pairs, two at a time: a container takes more waiting than work."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda pair: self.invoke(pair[0], event(pair[1])), given))

    def push(self, **headers):
        """A push of the sample repository, proven by the token."""
        gitlab = self.stack.report["gitlab"]
        push = event("webhook-push")
        body = json.loads(push["body"])
        for key in ("after", "checkout_sha"):
            body[key] = self.commit
        body["before"] = "0" * 40
        body["ref"] = f"refs/heads/{gitlab['default_branch']}"
        body["project_id"] = body["project"]["id"] = gitlab["project_id"]
        body["project"] |= {"path_with_namespace": gitlab["project"], "default_branch": gitlab["default_branch"]}
        push["body"] = json.dumps(body)
        push["headers"] |= {"x-gitlab-token": gitlab["hook_secret_token"]} | headers
        return push

    def test_every_function_is_built(self):
        for name in FUNCTIONS:
            self.assertTrue(os.access(self.built / f"{name}Function/bootstrap", os.X_OK), name)

    def test_forged_and_unproven_deliveries(self):
        answers = self.invoke_all([("Webhook", "webhook-forged"), ("Webhook", "webhook-push")])
        self.assertEqual([answer["statusCode"] for answer in answers], [401, 401])

    def test_malformed_events(self):
        names = FUNCTIONS[1:]
        for name, answer in zip(names, self.invoke_all([(name, "malformed") for name in names]), strict=True):
            self.assertEqual(answer.get("errorType"), "Kopsline.BadInput", f"{name}: {answer}")

    def test_events_of_an_unknown_run(self):
        given = [("Replace", "replace-restore"), ("Roll", "roll-step"), ("Console", "console-decide")]
        for (function, _), answer in zip(given, self.invoke_all(given), strict=True):
            self.assertRegex(answer.get("errorType", ""), r"^Kopsline\.", f"{function}: {answer}")

    def test_a_whole_run(self):
        """Each function does its part of a run that creates the sample cluster with real kops."""
        answer = self.invoke("Webhook", self.push())
        self.assertEqual(answer["statusCode"], 202, answer)
        run = json.loads(answer["body"])["runs"][0]
        # The pipeline must not do the same beside us.
        machine = self.stack.report["state_machines"]["Pipeline"]
        execution = f"{machine.replace(':stateMachine:', ':execution:')}:{run}"
        self.stack.aws("stepfunctions").stop_execution(executionArn=execution)
        for function, name, expected in (
            ("Replace", "replace-commit", "replaced"),
            ("Plan", "plan", "changes"),
            ("Update", "update", "applied"),
            ("Roll", "roll-preview", "nothing"),
            ("Console", "console-finish", "succeeded"),
        ):
            changes = {"run": run} | ({"execution": execution} if name == "replace-commit" else {})
            answer = self.invoke(function, event(name, **changes))
            self.assertEqual(answer.get("outcome"), expected, f"{name}: {answer}")
        record = json.loads(
            self.stack.aws("s3")
            .get_object(Bucket=self.stack.report["buckets"]["RunBucket"], Key=f"runs/{run}/run.json")["Body"]
            .read()
        )
        self.assertEqual(record["id"], run)


if __name__ == "__main__":
    unittest.main()
