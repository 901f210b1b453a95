"""check_asl.py accepts the real definitions and refuses each way of breaking them."""

import copy
import json
import subprocess
import tempfile
import unittest

from tools import check_asl

INFRA = check_asl.ROOT / "infra"
VALIDATOR = check_asl.ROOT / "tools/node_modules/.bin/asl-validator"

# What AWS allows one execution, and what one visit of a state writes at most.
MOST_EVENTS = 25_000
EVENTS_PER_TRY = 4  # scheduled, started, submitted, ended
EVENTS_PER_VISIT = 2  # entered, exited


def definition(name):
    return json.loads((INFRA / f"{name}.asl.json").read_text())


def state(name):
    """A mutation's access to one state of the pipeline."""
    return lambda machine: machine["States"][name]


def dropped(name, field):
    return lambda machine: state(name)(machine).pop(field)


def changed(name, field, value):
    return lambda machine: state(name)(machine).update({field: value})


# What somebody might do to the pipeline, and what they must be told.
MUTATIONS = {
    "no such StartAt": (lambda m: m.update(StartAt="Begun"), "definition: StartAt names 'Begun', which is no state"),
    "another query language": (lambda m: m.pop("QueryLanguage"), "definition: QueryLanguage must be JSONata"),
    "no such Next": (changed("Plan", "Next", "Plann"), "Plan: goes to 'Plann', which is no state"),
    "no such Default": (changed("PlanAnswer", "Default", "X"), "PlanAnswer: goes to 'X', which is no state"),
    "no such rule's Next": (
        lambda m: state("PlanAnswer")(m)["Choices"][0].update(Next="X"),
        "PlanAnswer: goes to 'X', which is no state",
    ),
    "no such Catch's Next": (
        lambda m: state("Plan")(m)["Catch"][0].update(Next="X"),
        "Plan: goes to 'X', which is no state",
    ),
    "a state left over": (
        lambda m: m["States"].update(Old={"Type": "Succeed"}),
        "Old: is never reached",
    ),
    "a way without an end": (
        lambda m: (changed("End", "Default", "End")(m), changed("End", "Choices", [])(m)),
        "End: leads to no Succeed or Fail state",
    ),
    "a foreign state type": (changed("KeepsMoving", "Type", "Map"), "KeepsMoving: state type 'Map' is not one"),
    "no Next": (dropped("WaitInRoll", "Next"), "WaitInRoll: has no Next"),
    "an End in passing": (
        lambda m: (dropped("KeepsMoving", "Next")(m), changed("KeepsMoving", "End", True)(m)),
        "KeepsMoving: ends the execution",
    ),
    "a choice without Default": (dropped("RollAnswer", "Default"), "RollAnswer: has no Default"),
    "a JSONPath field": (changed("Plan", "ResultPath", "$.x"), "Plan: ResultPath belongs to JSONPath"),
    "a mute failure": (dropped("NoRun", "Cause"), "NoRun: needs an Error and a Cause"),
    "something after the end": (changed("Done", "Next", "Finish"), "Done: is a Succeed state, nothing follows it"),
    "no timeout": (dropped("Update", "TimeoutSeconds"), "Update: has no TimeoutSeconds"),
    "no retry": (dropped("Update", "Retry"), "Update: has no Retry"),
    "no catch": (dropped("Update", "Catch"), "Update: must catch States.ALL"),
    "a catch of some": (
        lambda m: state("Update")(m)["Catch"][0].update(ErrorEquals=["Kopsline.Failed"]),
        "Update: must catch States.ALL",
    ),
    "a catch of all too early": (
        lambda m: state("ApproveUpdate")(m)["Catch"].reverse(),
        "ApproveUpdate: catches States.ALL before its last Catch",
    ),
    "a retry of what cannot be mended": (
        lambda m: state("Plan")(m)["Retry"][0]["ErrorEquals"].append("Kopsline.BadInput"),
        "Plan: retries Kopsline.BadInput, which trying again cannot mend",
    ),
    "a retry of everything": (
        lambda m: state("Plan")(m)["Retry"][0].update(ErrorEquals=["States.ALL"]),
        "Plan: retries States.ALL",
    ),
    "a killed function not retried": (
        lambda m: state("Plan")(m)["Retry"][1]["ErrorEquals"].remove("Runtime.ExitError"),
        "Plan: does not retry Runtime.ExitError",
    ),
    "an error retried twice": (
        lambda m: state("Plan")(m)["Retry"][1]["ErrorEquals"].append("Kopsline.Transient"),
        "Plan: retries Kopsline.Transient twice",
    ),
    "a question asked again when it expires": (
        lambda m: state("ApproveUpdate")(m)["Retry"][1]["ErrorEquals"].append("States.Timeout"),
        "ApproveUpdate: retries States.Timeout, which here means that nobody answered",
    ),
    "retries without end": (
        lambda m: state("Plan")(m)["Retry"][0].update(MaxAttempts=99999999),
        "Plan: MaxAttempts must be 1 to 10",
    ),
    "retries without backoff": (
        lambda m: state("Plan")(m)["Retry"][0].pop("BackoffRate"),
        "Plan: a retry lacks BackoffRate",
    ),
    "retries in step": (
        lambda m: state("Plan")(m)["Retry"][0].update(JitterStrategy="NONE"),
        "Plan: JitterStrategy must be FULL",
    ),
    "a foreign integration": (
        changed("Plan", "Resource", "arn:aws:states:::aws-sdk:ec2:terminateInstances"),
        "Plan: resource 'arn:aws:states:::aws-sdk:ec2:terminateInstances' is not a known integration",
    ),
    "a fixed function": (
        lambda m: state("Plan")(m)["Arguments"].update(FunctionName="arn:aws:lambda:eu-west-1:1:function:plan"),
        "Plan: FunctionName must be a substitution",
    ),
    "a token kept back": (
        lambda m: state("ApproveRoll")(m)["Arguments"]["Payload"].pop("token"),
        "ApproveRoll: waits for a token that it gives to nobody",
    ),
    "a document as payload": (
        lambda m: state("Plan")(m)["Arguments"].update(Payload="{% $states.input %}"),
        "Plan: Arguments reads $states.input: payloads are made of",
    ),
    "a document in a payload": (
        lambda m: state("Plan")(m)["Arguments"]["Payload"].update(manifest="{% $states.input.manifest %}"),
        "Plan: Arguments reads $states.input.manifest",
    ),
    "the execution's input as payload": (
        lambda m: state("Plan")(m)["Arguments"]["Payload"].update(all="{% $states.context.Execution.Input %}"),
        "Plan: Arguments reads $states.context.Execution.Input",
    ),
    "a document in a variable": (
        lambda m: state("Replace")(m)["Assign"].update(plan="{% $states.result.Payload %}"),
        "Replace: Assign reads $states.result.Payload",
    ),
    "a document in a catcher's variable": (
        lambda m: state("Restore")(m)["Catch"][0]["Assign"].update(all="{% $states.errorOutput %}"),
        "Restore: Assign reads $states.errorOutput",
    ),
    "a text of any length": (
        lambda m: state("Failure")(m)["Assign"].update(cause="{% $states.input.Cause %}"),
        "Failure: Assign takes $states.input.Cause at any length",
    ),
    "an input passed on": (
        lambda m: state("KeepsMoving")(m).update(Output="{% $states.input %}"),
        "KeepsMoving: Output passes its whole input on",
    ),
    "an unknown answer at any length": (
        lambda m: state("UnknownAnswer")(m)["Output"].update(Cause="{% $string($states.input) %}"),
        "UnknownAnswer: Output takes the whole input at any length",
    ),
    "a variable that is not": (
        lambda m: state("RollAnswer")(m)["Choices"][1].update(Condition="{% $turn >= $maxTurns %}"),
        "RollAnswer: Condition reads $turn, which is assigned nowhere",
    ),
    "a function that is not": (
        lambda m: state("WaitInRoll")(m).update(Seconds="{% $maxx([1, 2]) %}"),
        "WaitInRoll: Seconds calls $maxx",
    ),
    "a loop that nothing counts": (dropped("Roll", "Assign"), "Roll: is in a loop that nothing counts"),
    "a counter without a limit": (
        lambda m: [
            choice.update(Condition="{% $states.input.outcome = 'moved' %}")
            for choice in state("UpdateAnswer")(m)["Choices"]
            if "$maxReplans" in choice["Condition"]
        ],
        "Update: counts $replans, but no Choice compares it with a limit",
    ),
}


class Definitions(unittest.TestCase):
    def test_the_real_ones_have_no_problems(self):
        paths = sorted(INFRA.glob("*.asl.json"))
        self.assertGreaterEqual(len(paths), 2)
        for path in paths:
            self.assertEqual(check_asl.check_text(path.read_text()), [], path.name)

    def test_each_way_to_break_the_pipeline_is_told(self):
        whole = definition("pipeline")
        for name, (mutate, expected) in MUTATIONS.items():
            with self.subTest(name):
                machine = copy.deepcopy(whole)
                mutate(machine)
                problems = check_asl.check_text(json.dumps(machine))
                self.assertTrue(any(problem.startswith(expected) for problem in problems), problems)

    def test_text_that_is_no_definition(self):
        self.assertIn("line 1 column 2", check_asl.check_text("{")[0])
        self.assertIn("duplicate key 'A'", check_asl.check_text('{"States": {"A": {}, "A": {}}}')[0])

    def test_the_worst_history_fits(self):
        """Every try fails until the last one, and every loop takes all its turns."""
        machine = definition("pipeline")
        states, begin = machine["States"], machine["States"]["Begin"]["Assign"]

        def worst(*names):
            return sum(
                EVENTS_PER_VISIT
                + EVENTS_PER_TRY * (1 + sum(r["MaxAttempts"] for r in states[name].get("Retry", [])))
                * (states[name]["Type"] == "Task")
                for name in names
            )

        turn = max(worst("Replace", "ReplaceAnswer", "WaitForLock"), worst("Roll", "RollAnswer", "WaitInRoll"))
        replan = worst("Plan", "PlanAnswer", "ApproveUpdate", "UpdateDecision", "Update", "UpdateAnswer")
        once = worst(*states)
        total = begin["maxTurns"] * turn + begin["maxReplans"] * replan + once
        self.assertLess(total, MOST_EVENTS)


class Substitutions(unittest.TestCase):
    TEMPLATE = """
Resources:
  Pipeline:
    Type: AWS::Serverless::StateMachine
    Properties:
      DefinitionUri: infra/pipeline.asl.json
      DefinitionSubstitutions:
        PlanFunctionArn: !GetAtt PlanFunction.Arn
        RollFunctionArn: !GetAtt PlanFunction.Arn
      Tracing:
        Enabled: true
  Approve:
    Type: AWS::Serverless::StateMachine
    Properties:
      DefinitionUri: infra/approve.asl.json
"""

    def test_the_template_is_read(self):
        self.assertEqual(
            check_asl.template_substitutions(self.TEMPLATE),
            {
                "infra/pipeline.asl.json": {
                    "PlanFunctionArn": "!GetAtt PlanFunction.Arn",
                    "RollFunctionArn": "!GetAtt PlanFunction.Arn",
                },
                "infra/approve.asl.json": {},
            },
        )

    def test_the_real_template_gives_what_is_wanted(self):
        given = check_asl.template_substitutions((check_asl.ROOT / "template.yaml").read_text())
        for path in INFRA.glob("*.asl.json"):
            self.assertEqual(check_asl.check_substitutions(path.read_text(), given.get(f"infra/{path.name}")), [])

    def test_missing_left_over_and_crossed_substitutions(self):
        given = check_asl.template_substitutions(self.TEMPLATE)["infra/pipeline.asl.json"]
        self.assertEqual(
            check_asl.check_substitutions("${UpdateFunctionArn} ${RollFunctionArn}", given),
            [
                "template: gives no substitution UpdateFunctionArn",
                "template: substitution PlanFunctionArn is used nowhere",
                "template: RollFunctionArn is !GetAtt PlanFunction.Arn, not !GetAtt RollFunction.Arn",
            ],
        )
        self.assertEqual(
            check_asl.check_substitutions("", None), ["template: no state machine has this DefinitionUri"]
        )


class SecondOpinion(unittest.TestCase):
    """asl-validator knows the language's schema and JSONata's grammar, which our check does not."""

    @classmethod
    def setUpClass(cls):
        if not VALIDATOR.exists():
            raise AssertionError("asl-validator is not installed: run tools/setup --test")

    def validate(self, *paths):
        arguments = [argument for path in paths for argument in ("--json-path", str(path))]
        return subprocess.run([VALIDATOR, *arguments], capture_output=True, text=True, timeout=60)

    def test_it_accepts_the_real_ones(self):
        run = self.validate(*sorted(INFRA.glob("*.asl.json")))
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)

    def test_it_refuses_broken_ones(self):
        for mutate in (
            changed("Plan", "Next", "Plann"),
            changed("WaitInRoll", "Seconds", "{% $max([1, %}"),
            changed("Plan", "Parameters", {}),
        ):
            machine = definition("pipeline")
            mutate(machine)
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump(machine, file)
                file.flush()
                self.assertNotEqual(self.validate(file.name).returncode, 0)


if __name__ == "__main__":
    unittest.main()
