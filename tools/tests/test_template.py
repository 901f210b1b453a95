"""What template.yaml promises about permissions, as SAM translates it. Runs in the sam virtual environment."""

import json
import os
import re
import subprocess
import sys
import unittest

try:
    from samcli.yamlhelper import yaml_parse
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator
except ImportError as error:
    raise unittest.SkipTest(f"needs the sam virtual environment ({error}): run tools/test") from error

from tools import check_asl

TEMPLATE = check_asl.ROOT / "template.yaml"
FUNCTIONS = ["Webhook", "Replace", "Plan", "Update", "Roll", "Console"]
READS = re.compile(r"^[a-z0-9]+:(Describe|Get|List)")
# Load balancers outside of the cluster carry none of its tags.
PUTS_AND_TAKES = re.compile(r"^elasticloadbalancing:(Register|Deregister)(Targets|InstancesWithLoadBalancer|InstancesFromLoadBalancer)$")

# A function gets what it reads, and nothing else.
COMMON = {"KOPSLINE_RUN_BUCKET", "KOPSLINE_LOG"}
GITLAB = {"KOPSLINE_GITLAB_URL", "KOPSLINE_GITLAB_TOKEN_SECRET_ARN"}
KOPS = {"KOPSLINE_KOPS_SOURCE", "KOPSLINE_KOPS_FEATURE_FLAGS"}
ENVIRONMENT = {
    "Webhook": COMMON | GITLAB | {
        "KOPSLINE_PIPELINE_ARN", "KOPSLINE_ALLOWED_PROJECTS", "KOPSLINE_STATE_STORES", "KOPSLINE_WEBHOOK_AUTH",
        "KOPSLINE_WEBHOOK_SECRET_ARN", "KOPSLINE_MAX_BODY_BYTES",
    },
    "Replace": COMMON | GITLAB | KOPS,
    "Plan": COMMON | KOPS,
    "Update": COMMON | KOPS,
    "Roll": COMMON,
    "Console": COMMON | GITLAB,
}  # fmt: skip


def as_list(value):
    return value if isinstance(value, list) else [value]


class Template(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        os.environ.setdefault("AWS_DEFAULT_REGION", "eu-central-1")
        cls.source = yaml_parse(TEMPLATE.read_text())
        source = yaml_parse(TEMPLATE.read_text())
        for resource in source["Resources"].values():
            # Where the code lies does not matter here, and is a folder until it is built.
            for field in ("CodeUri", "DefinitionUri"):
                if field in resource.get("Properties", {}):
                    resource["Properties"][field] = "s3://bucket/key"
        source["Globals"]["Function"]["CodeUri"] = "s3://bucket/key"
        parameters = {name: given.get("Default", "") for name, given in source["Parameters"].items()}
        # AWS's own managed policies, which only an account can list, are not used.
        translator = Translator({}, Parser())
        cls.resources = translator.translate(source, parameters)["Resources"]

    def statements(self, function):
        """All statements of a function's role, those of the shared policies included."""
        found = []
        for policy in self.source["Resources"][f"{function}Function"]["Properties"]["Policies"]:
            document = policy
            if "Ref" in policy:
                document = self.source["Resources"][policy["Ref"]]["Properties"]["PolicyDocument"]
            found += document["Statement"]
        return found

    def writes(self, function):
        """(action, resource as text) of everything that a function may change."""
        return [
            (action, str(statement["Resource"]))
            for statement in self.statements(function)
            for action in as_list(statement["Action"])
            if not READS.match(action)
        ]

    def test_no_role_may_do_everything(self):
        for function in FUNCTIONS:
            actions = [action for statement in self.statements(function) for action in as_list(statement["Action"])]
            self.assertNotIn("*", actions)
            self.assertNotIn("s3:*", actions)
            self.assertNotIn("iam:*", actions)

    def test_plan_writes_its_own_records_and_its_lease_and_nothing_else(self):
        own = [("s3:PutObject", str({"Fn::Sub": f"${{RunBucket.Arn}}/{prefix}/*"})) for prefix in ("locks", "runs")]
        self.assertEqual(sorted(self.writes("Plan")), own)

    def test_replace_writes_the_registry_and_no_cloud(self):
        for action, resource in self.writes("Replace"):
            self.assertRegex(action, r"^s3:(Put|Delete)Object$")
            self.assertRegex(
                resource, r"RunBucket\.Arn}/(runs|locks)/|\$\{All\}/\*/(config'|instancegroup/|clusteraddons/|pki/ssh/)"
            )

    def test_roll_writes_no_state_store_and_touches_only_tagged_nodes(self):
        for statement in self.statements("Roll"):
            for action in as_list(statement["Action"]):
                if action in ("s3:PutObject", "s3:DeleteObject"):
                    self.assertIn("RunBucket", str(statement["Resource"]))
                elif not READS.match(action) and not PUTS_AND_TAKES.match(action):
                    self.assertEqual(
                        statement["Condition"]["Null"], {"aws:ResourceTag/KubernetesCluster": "false"}, action
                    )

    def test_only_the_console_reads_tokens_and_answers_tasks(self):
        for function in FUNCTIONS:
            text = str(self.statements(function))
            self.assertEqual("/tokens/" in text, function == "Console", function)
            self.assertEqual("states:SendTask" in text, function == "Console", function)

    def test_the_webhook_starts_the_pipeline_alone(self):
        states = [s for s in self.statements("Webhook") if "states:" in str(s["Action"])]
        self.assertEqual([(s["Action"], s["Resource"]) for s in states], [("states:StartExecution", {"Ref": "Pipeline"})])

    def test_functions_get_the_variables_they_need(self):
        for function in FUNCTIONS:
            variables = self.resources[f"{function}Function"]["Properties"]["Environment"]["Variables"]
            self.assertEqual(set(variables), ENVIRONMENT[function], function)

    def test_the_public_url_has_both_permissions(self):
        permissions = [r["Properties"] for r in self.resources.values() if r["Type"] == "AWS::Lambda::Permission"]
        self.assertEqual(
            sorted((p["Action"], p["Principal"]) for p in permissions),
            [("lambda:InvokeFunction", "*"), ("lambda:InvokeFunctionUrl", "*")],
        )
        for permission in permissions:
            self.assertTrue(
                permission.get("FunctionUrlAuthType") == "NONE" or permission.get("InvokedViaFunctionUrl") is True
            )

    def test_every_function_logs_with_a_retention(self):
        for function in FUNCTIONS:
            group = self.resources[f"{function}Function"]["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
            self.assertIn("RetentionInDays", self.resources[group]["Properties"])

    def test_kops_fits_where_it_runs(self):
        for function in ("Replace", "Plan", "Update"):
            properties = self.resources[f"{function}Function"]["Properties"]
            self.assertEqual((properties["Timeout"], properties["EphemeralStorage"]["Size"]), (900, 4096))
            self.assertGreaterEqual(properties["MemorySize"], 2048)

    def test_state_machines_outlast_their_functions(self):
        """Else a task would be given up, and tried again, while its function still works."""
        for path in sorted((check_asl.ROOT / "infra").glob("*.asl.json")):
            for name, state in json.loads(path.read_text())["States"].items():
                function = check_asl.SUBSTITUTION.fullmatch(state.get("Arguments", {}).get("FunctionName", ""))
                if function and state["Resource"] == check_asl.LAMBDA:
                    limit = self.resources[function[1].removesuffix("Arn")]["Properties"]["Timeout"]
                    self.assertGreater(state["TimeoutSeconds"], limit, f"{path.name}: {name}")

    def test_linters_accept_it(self):
        binaries = os.path.dirname(sys.executable)
        for command in (["sam", "validate", "--lint"], ["cfn-lint", "template.yaml"]):
            run = subprocess.run(
                [os.path.join(binaries, command[0]), *command[1:]],
                cwd=check_asl.ROOT,
                env={**os.environ, "SAM_CLI_TELEMETRY": "0"},
                capture_output=True,
                text=True,
                timeout=300,
            )
            self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


if __name__ == "__main__":
    unittest.main()
