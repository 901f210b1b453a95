"""The local stack with everything deployed, and the repository of the clusters that are measured."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import time
import urllib.request

from stack import deploy
from stack.test_stack import Running

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FUNCTIONS = ["webhook", "replace", "plan", "update", "roll", "console"]
BINARIES = pathlib.Path(os.environ.get("KOPSLINE_FUNCTIONS") or ROOT / f"target/lambda-{deploy.architecture()}")
KOPS_VERSION = re.search(r"k8s\.io/kops v(\S+)", (ROOT / "tools/kops/go.mod").read_text())[1]
STATE_STORE = "kops-state"
DEMO = (ROOT / "tests/fixtures/demo/cluster.yaml").read_text()
DEMO_NAME = "demo.k8s.example.com"
# As the sample repository has them: emulated machines come up at once.
INTERVALS = {"bastion": 1, "control-plane": 2, "node": 1}


def binary(function):
    return BINARIES / function / "bootstrap"


def cluster_entry(name, roll="automatic"):
    """A cluster's entry in kopsline.yaml; its manifests are in a file of its name."""
    return {
        "name": name,
        "stateStore": f"s3://{STATE_STORE}",
        "region": "us-east-1",
        "kops": {"version": KOPS_VERSION},
        "sources": [f"{name}.yaml"],
        "approvals": {"update": "automatic", "roll": roll},
        "rollingUpdate": {
            "cloudonly": True,
            "bastionInterval": f"{INTERVALS['bastion']}s",
            "controlPlaneInterval": f"{INTERVALS['control-plane']}s",
            "nodeInterval": f"{INTERVALS['node']}s",
        },
    }


class Workplace:
    """The stack, GitLab's repository on it, and bare kops beside it."""

    def __init__(self, home, clusters):
        content = home / "content"
        content.mkdir()
        # JSON is YAML.
        (content / "kopsline.yaml").write_text(json.dumps({"version": 1, "clusters": clusters}, indent=2))
        self.home = home
        self.kops_cache = home / "kops-cache"
        self.stack = Running(
            home / "stack",
            *("--template", str(ROOT / "template.yaml"), "--functions", str(BINARIES)),
            *("--values", str(ROOT / "tests/stack/kopsline-values.json"), "--content", str(content)),
            *("--env", f"KOPSLINE_CACHE_DIR={self.kops_cache}"),
            *("--kops", f"{KOPS_VERSION}={os.environ['STACK_KOPS']}"),
        )
        self.report = self.stack.report
        self.gitlab = self.report["gitlab"]

    def stop(self):
        self.stack.stop()

    def environment(self, function):
        """The variables of a deployed function."""
        deployed = self.report["functions"][f"{function.capitalize()}Function"]
        configuration = self.stack.aws("lambda").get_function_configuration(FunctionName=deployed)
        return configuration["Environment"]["Variables"]

    def make_cold(self):
        """Ends the processes of all functions, as Lambda does when nothing is asked of them for a while."""
        client = self.stack.aws("lambda")
        for name in self.report["functions"].values():
            # Any change of a function's configuration does so, also one to what it was.
            timeout = client.get_function_configuration(FunctionName=name)["Timeout"]
            client.update_function_configuration(FunctionName=name, Timeout=timeout)
            client.get_waiter("function_updated_v2").wait(FunctionName=name, WaiterConfig={"Delay": 0.2})

    def fill_kops_cache(self):
        """Puts kops where functions keep it, as an invocation before left it; they verify it all the same."""
        kops = pathlib.Path(os.environ["STACK_KOPS"])
        folder = self.kops_cache / KOPS_VERSION / "linux" / deploy.KOPS_ARCHITECTURES[deploy.architecture()]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kops, folder / "kops")
        with kops.open("rb") as file:
            (folder / "kops.sha256").write_text(hashlib.file_digest(file, "sha256").hexdigest())

    def empty_kops_cache(self):
        shutil.rmtree(self.kops_cache, ignore_errors=True)

    def logged(self, function):
        """What a function logged so far, line by line."""
        lines = pathlib.Path(self.report["function_logs"][f"{function.capitalize()}Function"]).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"timestamp"')]

    def manifest(self, text):
        """The text of a manifest for this stack."""
        return text.replace("https://kops-files.example.com", self.report["files_url"])

    def control(self, path, order):
        """Steers the GitLab stand-in."""
        request = urllib.request.Request(
            self.gitlab["url"] + path, json.dumps(order).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def commit(self, files, message):
        """A commit on the default branch, of which nobody is told yet."""
        return self.control("/_control/commit", {"project": self.gitlab["project"], "files": files, "message": message})

    def push(self, commit):
        """Sends the signed hook of a commit; the run that it starts."""
        order = {key: commit[key] for key in ("ref", "before", "after")}
        delivery = self.control("/_control/push", order | {"project": self.gitlab["project"]})
        if delivery["status"] != 202:
            raise RuntimeError(f"the webhook answered {delivery['status']}: {delivery['body']}")
        return json.loads(delivery["body"])["runs"][0]

    def run_record(self, run):
        return json.load(
            self.stack.aws("s3").get_object(Bucket=self.report["buckets"]["RunBucket"], Key=f"runs/{run}/run.json")["Body"]
        )

    def finished(self, run):
        """Waits for the end of a run's execution; its record, which must tell of success."""
        client = self.stack.aws("stepfunctions")
        machine = self.report["state_machines"]["Pipeline"]
        execution = machine.replace(":stateMachine:", ":execution:") + f":{run}"
        while client.describe_execution(executionArn=execution)["status"] == "RUNNING":
            time.sleep(0.05)
        record = self.run_record(run)
        if record["state"] != "succeeded":
            raise RuntimeError(f"{run} ended as {record['state']}: {json.dumps(record, indent=1)}")
        return record

    def kops_environment(self):
        return {"PATH": os.environ["PATH"], "KOPS_STATE_STORE": f"s3://{STATE_STORE}", **self.report["kops_env"]}

    def kops(self, *arguments):
        """Bare kops, for what is prepared and not measured."""
        done = subprocess.run(
            [os.environ["STACK_KOPS"], *arguments], env=self.kops_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"kops {' '.join(arguments)}: {done.stderr[-4000:]}")
        return done.stdout

    def calls(self):
        """How many requests the emulated AWS has answered so far."""
        return len(self.stack.requests("aws"))

    def calls_since(self, before):
        """The requests after the first `before`, by what they were for."""
        return self.stack.requests("aws")[before:]
