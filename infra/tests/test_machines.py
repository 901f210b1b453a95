"""Every way through the state machines, on a real interpreter (LocalStack's Step Functions) with scripted functions.

The functions are played by a small server that speaks Lambda's Invoke: what is tested here is the definitions alone.
Runs in the aws virtual environment, with tests/ on the path and STACK_LOCALSTACK_PYTHON set; see tools/test.
"""

import collections
import http.server
import json
import os
import pathlib
import re
import tempfile
import threading
import time
import unittest
import urllib.parse
import uuid

from stack import components, processes
from stack.deploy import client

INFRA = pathlib.Path(__file__).resolve().parent.parent
ROLE = "arn:aws:iam::000000000000:role/states"
FUNCTIONS = ("replace", "plan", "update", "roll", "console")


class Error(Exception):
    """What a function's failure looks like to the state machine: `name` is Lambda's errorType."""

    def __init__(self, name, message="scripted"):
        super().__init__(name)
        self.answer = {"errorType": name, "errorMessage": message}


class ScriptedLambda(http.server.ThreadingHTTPServer):
    """Answers Invoke from a script: for each (run, step) a list of answers, the last one for ever."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.scripts = collections.defaultdict(dict)
        self.calls = collections.defaultdict(list)
        self.guard = threading.Lock()

    def answer(self, function, event):
        key = event.get("run") or event["approval"]
        step = ":".join(filter(None, (function, event.get("action"), event.get("gate"))))
        with self.guard:
            self.calls[key].append((step, event))
            answers = self.scripts[key].get(step)
            if answers is None:
                raise Error("Test.Unexpected", f"no script for {step} of {key}")
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Error):
            raise answer
        return answer


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        function = urllib.parse.unquote(self.path).split("/functions/")[1].split("/")[0].rsplit(":", 1)[-1]
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {"x-amzn-requestid": str(uuid.uuid4()), "content-type": "application/json"}
        try:
            answer = self.server.answer(function, event)
        except Error as error:
            answer = error.answer
            headers["x-amz-function-error"] = "Unhandled"
        body = json.dumps(answer).encode()
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def load(name):
    """The definition as deployed, with the waits between retries made short."""
    text = (INFRA / f"{name}.asl.json").read_text()
    for function in FUNCTIONS:
        text = text.replace(
            "${%sFunctionArn}" % function.capitalize(), f"arn:aws:lambda:us-east-1:000000000000:function:{function}"
        )
    assert not re.search(r"\$\{", text), "a substitution is left over"
    definition = json.loads(text)
    for state in definition["States"].values():
        for retrier in state.get("Retry", []):
            retrier.update(IntervalSeconds=1, MaxDelaySeconds=2, BackoffRate=1)
    return definition


class Machines(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        home = pathlib.Path(folder.name)
        for name in ("logs", "tmp", "localstack"):
            (home / name).mkdir()
        aws = components.aws(home, os.environ["STACK_LOCALSTACK_PYTHON"])
        # moto only lets Step Functions assume its role; the scripted functions take Lambda's place.
        programs = [aws.moto, aws.sfn]
        cls.addClassCleanup(processes.stop, programs)
        for program in programs:
            program.start()
        for program in programs:
            program.wait_ready(time.monotonic() + 120)
        cls.lambdas = ScriptedLambda(int(aws.lambda_url.rsplit(":", 1)[1]))
        threading.Thread(target=cls.lambdas.serve_forever, daemon=True).start()
        cls.addClassCleanup(cls.lambdas.server_close)
        cls.addClassCleanup(cls.lambdas.shutdown)
        cls.sfn = client("stepfunctions", aws.sfn_url)
        cls.approve = cls.create("approve", load("approve"))
        cls.pipeline = cls.create("pipeline", load("pipeline"))

    @classmethod
    def create(cls, name, definition):
        return cls.sfn.create_state_machine(
            name=f"{name}-{uuid.uuid4().hex[:8]}", definition=json.dumps(definition), roleArn=ROLE
        )["stateMachineArn"]

    def script(self, **changes):
        """A run that goes well with automatic approvals, but for `changes` (`roll__step` is `roll:step`)."""
        run = f"c-example-com-{uuid.uuid4().hex[:12]}"
        script = {
            "replace:commit": [{"outcome": "replaced"}],
            "replace:restore": [{"outcome": "restored"}],
            "plan": [{"outcome": "changes", "gate": "automatic"}],
            "update": [{"outcome": "applied"}],
            "roll:forecast": [{"outcome": "forecast"}],
            "roll:preview": [{"outcome": "needed", "gate": "automatic"}],
            "roll:step": [{"outcome": "done"}],
            "console:ask:update": [{}],
            "console:ask:roll": [{}],
            "console:tell": [{"outcome": "told"}],
            "console:finish": [{"outcome": "finished"}],
        }
        script.update({step.replace("__", ":"): answers for step, answers in changes.items()})
        self.lambdas.scripts[run] = script
        return run

    def start(self, run, machine=None, **more):
        return self.sfn.start_execution(
            stateMachineArn=machine or self.pipeline, name=run, input=json.dumps({"run": run, **more})
        )["executionArn"]

    def ended(self, execution, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.sfn.describe_execution(executionArn=execution)
            if found["status"] != "RUNNING":
                return found
            time.sleep(0.05)
        self.fail(f"{execution} still runs; calls: {self.steps(execution.rsplit(':', 1)[1])}")

    def steps(self, run):
        return [step for step, _ in self.lambdas.calls[run]]

    def event(self, run, step, index=-1):
        return [event for called, event in self.lambdas.calls[run] if called == step][index]

    def answer(self, run, gate, decision, seconds=20):
        """Answers as the console function does: with the token it was given."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if f"console:ask:{gate}" in self.steps(run):
                token = self.event(run, f"console:ask:{gate}")["token"]
                self.sfn.send_task_success(taskToken=token, output=json.dumps({"decision": decision}))
                return
            time.sleep(0.05)
        self.fail(f"nobody was asked; calls: {self.steps(run)}")

    def check(self, run, steps, result, status="SUCCEEDED", **more):
        execution = self.ended(self.start(run, **more))
        self.assertEqual(self.steps(run), steps, execution.get("cause"))
        self.assertEqual(execution["status"], status, execution.get("cause"))
        if "console:finish" in steps:
            self.assertEqual(self.event(run, "console:finish")["result"], result)
        if status == "SUCCEEDED":
            self.assertEqual(json.loads(execution["output"]), {"run": run, "result": result})
        return execution

    # The straight ways.

    def test_everything_automatic(self):
        run = self.script()
        self.check(
            run, ["replace:commit", "plan", "update", "roll:preview", "roll:step", "console:finish"], "succeeded"
        )
        commit = self.event(run, "replace:commit")
        self.assertEqual(commit["execution"].rsplit(":", 1)[1], run)
        self.assertRegex(commit["entered"], r"^\d{4}-\d\d-\d\dT")
        self.assertEqual(
            self.event(run, "console:finish"),
            {"action": "finish", "run": run, "result": "succeeded", "error": None, "cause": None},
        )
        self.assertEqual(self.event(run, "plan"), {"run": run})
        self.assertEqual(self.event(run, "update"), {"run": run, "phase": "all"})

    def test_two_approvals(self):
        ask = {"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 60}
        run = self.script(plan=[ask], roll__preview=[{**ask, "outcome": "needed"}])
        execution = self.start(run)
        self.answer(run, "update", "approve")
        self.answer(run, "roll", "approve")
        self.assertEqual(self.ended(execution)["status"], "SUCCEEDED")
        self.assertEqual(
            self.steps(run),
            [
                "replace:commit",
                "plan",
                "roll:forecast",
                "console:ask:update",
                "update",
                "roll:preview",
                "console:ask:roll",
                "roll:step",
                "console:finish",
            ],
        )
        asked = self.event(run, "console:ask:update")
        self.assertEqual(asked["timeout_seconds"], 60)
        self.assertEqual(set(asked), {"action", "run", "gate", "token", "timeout_seconds"})

    def test_no_changes_skips_the_gate_and_the_update(self):
        run = self.script(plan=[{"outcome": "no-changes"}], roll__preview=[{"outcome": "nothing"}])
        self.check(run, ["replace:commit", "plan", "roll:preview", "console:finish"], "no-changes")

    def test_no_changes_still_finishes_a_roll_that_was_left_over(self):
        run = self.script(plan=[{"outcome": "no-changes"}])
        self.check(run, ["replace:commit", "plan", "roll:preview", "roll:step", "console:finish"], "succeeded")

    def test_nothing_to_roll(self):
        run = self.script(roll__preview=[{"outcome": "nothing"}])
        self.check(run, ["replace:commit", "plan", "update", "roll:preview", "console:finish"], "succeeded")

    def test_superseded(self):
        run = self.script(replace__commit=[{"outcome": "superseded"}])
        self.check(run, ["replace:commit", "console:finish"], "superseded")

    def test_busy_lock_waits_outside_the_function(self):
        busy = {"outcome": "busy", "wait_seconds": 1}
        run = self.script(replace__commit=[busy, busy, {"outcome": "unchanged"}], plan=[{"outcome": "no-changes"}])
        self.check(run, ["replace:commit"] * 3 + ["plan", "roll:preview", "roll:step", "console:finish"], "succeeded")

    def test_roll_loops_with_and_without_a_wait(self):
        step = {"outcome": "progress", "wait_seconds": 0}
        run = self.script(roll__step=[step, {**step, "wait_seconds": 1}, {"outcome": "done"}])
        self.check(
            run, ["replace:commit", "plan", "update", "roll:preview"] + ["roll:step"] * 3 + ["console:finish"], "succeeded"
        )
        self.assertEqual(self.event(run, "roll:step"), {"action": "step", "run": run, "phase": "all"})

    def test_people_are_told_of_a_wait_that_is_worth_it(self):
        step = {"outcome": "progress", "wait_seconds": 1, "tell": True}
        run = self.script(roll__step=[step, {**step, "tell": False}, {"outcome": "done"}], console__tell=[Error("Kopsline.Failed", "no")])
        self.check(
            run,
            ["replace:commit", "plan", "update", "roll:preview", "roll:step", "console:tell", "roll:step", "roll:step", "console:finish"],
            "succeeded",
        )

    def test_a_plan_that_nobody_can_foresee_is_asked_for_even_so(self):
        ask = {"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 60}
        run = self.script(plan=[ask], roll__forecast=[Error("Kopsline.Failed", "the API is down")])
        execution = self.start(run)
        self.answer(run, "update", "approve")
        self.assertEqual(self.ended(execution)["status"], "SUCCEEDED")

    def test_a_new_minor_version_goes_to_the_control_plane_first(self):
        run = self.script(plan=[{"outcome": "changes", "gate": "automatic", "upgrade": True}])
        again = ["update", "roll:preview", "roll:step"]
        self.check(run, ["replace:commit", "plan", *again, *again, "update", "console:finish"], "succeeded")
        phases = [event["phase"] for step, event in self.lambdas.calls[run] if step in again]
        self.assertEqual(phases, ["control-plane"] * 3 + ["nodes"] * 3 + ["prune"])

    def test_a_rejected_roll_of_the_control_plane_leaves_the_nodes(self):
        ask = {"outcome": "needed", "gate": "manual", "approval_timeout_seconds": 60}
        run = self.script(plan=[{"outcome": "changes", "gate": "automatic", "upgrade": True}], roll__preview=[ask])
        execution = self.start(run)
        self.answer(run, "roll", "reject")
        self.assertEqual(json.loads(self.ended(execution)["output"])["result"], "rejected")
        self.assertEqual(self.steps(run)[-3:], ["roll:preview", "console:ask:roll", "console:finish"])

    def test_a_question_in_the_middle_of_a_roll(self):
        question = {"outcome": "question", "gate": "drain", "timeout_seconds": 60}
        run = self.script(roll__step=[question, {"outcome": "done"}], console__ask__drain=[{}])
        execution = self.start(run)
        self.answer(run, "drain", "skip")
        self.assertEqual(self.ended(execution)["status"], "SUCCEEDED")
        self.assertEqual(self.steps(run)[-4:], ["roll:step", "console:ask:drain", "roll:step", "console:finish"])

    def test_a_question_that_nobody_answers_is_the_rolls_own_to_decide(self):
        question = {"outcome": "question", "gate": "checkpoint", "timeout_seconds": 1}
        run = self.script(roll__step=[question, {"outcome": "done"}], console__ask__checkpoint=[{}])
        self.assertEqual(self.ended(self.start(run))["status"], "SUCCEEDED")
        self.assertEqual(self.steps(run)[-3:], ["console:ask:checkpoint", "roll:step", "console:finish"])

    def test_a_paused_roll_waits_for_its_token(self):
        run = self.script(roll__step=[{"outcome": "paused"}, {"outcome": "done"}], console__hold=[{}])
        execution = self.start(run)
        while "console:hold" not in self.steps(run):
            time.sleep(0.05)
        self.assertEqual(self.sfn.describe_execution(executionArn=execution)["status"], "RUNNING")
        self.sfn.send_task_success(taskToken=self.event(run, "console:hold")["token"], output="{}")
        self.assertEqual(self.ended(execution)["status"], "SUCCEEDED")
        self.assertEqual(self.steps(run)[-4:], ["roll:step", "console:hold", "roll:step", "console:finish"])

    def test_moved_plans_again(self):
        run = self.script(update=[{"outcome": "moved"}, {"outcome": "applied"}])
        self.check(
            run,
            ["replace:commit", "plan", "update", "plan", "update", "roll:preview", "roll:step", "console:finish"],
            "succeeded",
        )

    # Refusals of people.

    def test_rejected_update_restores(self):
        run = self.script(plan=[{"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 60}])
        execution = self.start(run)
        self.answer(run, "update", "reject")
        self.assertEqual(json.loads(self.ended(execution)["output"])["result"], "rejected")
        self.assertEqual(self.steps(run)[4:], ["replace:restore", "console:finish"])
        self.assertEqual(self.event(run, "replace:restore"), {"action": "restore", "run": run, "reason": "rejected"})

    def test_rejected_roll_does_not_restore(self):
        run = self.script(roll__preview=[{"outcome": "needed", "gate": "manual", "approval_timeout_seconds": 60}])
        execution = self.start(run)
        self.answer(run, "roll", "reject")
        self.assertEqual(json.loads(self.ended(execution)["output"])["result"], "rejected")
        self.assertEqual(self.steps(run)[3:], ["roll:preview", "console:ask:roll", "console:finish"])

    def test_expired_update_restores(self):
        run = self.script(plan=[{"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 1}])
        self.check(
            run, ["replace:commit", "plan", "roll:forecast", "console:ask:update", "replace:restore", "console:finish"], "expired"
        )

    def test_expired_roll_does_not_restore(self):
        run = self.script(roll__preview=[{"outcome": "needed", "gate": "manual", "approval_timeout_seconds": 1}])
        self.check(
            run, ["replace:commit", "plan", "update", "roll:preview", "console:ask:roll", "console:finish"], "expired"
        )

    # Failures.

    def failed(self, run, steps, error, *causes):
        execution = self.check(run, steps, "failed", status="FAILED")
        self.assertEqual(execution["error"], error)
        for cause in causes:
            self.assertIn(cause, execution["cause"])

    def test_a_failure_before_the_update_restores(self):
        for step, before in (("replace:commit", []), ("plan", ["replace:commit"])):
            with self.subTest(step):
                run = self.script(**{step.replace(":", "__"): [Error("Kopsline.BadInput", "cluster.yml:3: no such kind")]})
                self.failed(
                    run,
                    [*before, step, "replace:restore", "console:finish"],
                    "Kopsline.BadInput",
                    "cluster.yml:3: no such kind",
                )
                finish = self.event(run, "console:finish")
                self.assertEqual(finish["error"], "Kopsline.BadInput")
                self.assertIn("cluster.yml:3", finish["cause"])

    def test_a_failure_of_asking_restores(self):
        run = self.script(
            plan=[{"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 60}],
            console__ask__update=[Error("Kopsline.Failed")],
        )
        self.failed(
            run,
            ["replace:commit", "plan", "roll:forecast", "console:ask:update", "replace:restore", "console:finish"],
            "Kopsline.Failed",
        )

    def test_a_failure_from_the_update_on_does_not_restore(self):
        before = ["replace:commit", "plan"]
        for step in ("update", "roll:preview", "roll:step"):
            before.append(step)
            with self.subTest(step):
                run = self.script(**{step.replace(":", "__"): [Error("Kopsline.KopsFailed", "no such machine type")]})
                self.failed(run, [*before, "console:finish"], "Kopsline.KopsFailed", "no such machine type")

    def test_a_roll_that_fails_after_no_changes_does_not_restore(self):
        run = self.script(plan=[{"outcome": "no-changes"}], roll__step=[Error("Kopsline.Failed")])
        self.failed(run, ["replace:commit", "plan", "roll:preview", "roll:step", "console:finish"], "Kopsline.Failed")

    def test_moving_for_ever_gives_up_and_restores(self):
        run = self.script(update=[{"outcome": "moved"}])
        self.failed(
            run,
            ["replace:commit"] + ["plan", "update"] * 4 + ["replace:restore", "console:finish"],
            "Kopsline.Conflict",
            "4 times in a row",
        )

    def test_transient_errors_and_killed_functions_are_retried(self):
        for name in ("Kopsline.Transient", "Runtime.ExitError", "Sandbox.Timedout", "Lambda.Unknown", "Runtime.Unknown"):
            with self.subTest(name):
                run = self.script(update=[Error(name), {"outcome": "applied"}])
                self.check(
                    run,
                    ["replace:commit", "plan", "update", "update", "roll:preview", "roll:step", "console:finish"],
                    "succeeded",
                )

    def test_retries_end(self):
        run = self.script(plan=[Error("Runtime.ExitError")])
        self.failed(
            run, ["replace:commit"] + ["plan"] * 4 + ["replace:restore", "console:finish"], "Runtime.ExitError"
        )

    def test_a_retried_question_carries_the_token_that_counts(self):
        run = self.script(
            plan=[{"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 60}],
            console__ask__update=[Error("Runtime.ExitError"), {}],
        )
        execution = self.start(run)
        while self.steps(run).count("console:ask:update") < 2:
            time.sleep(0.05)
        self.answer(run, "update", "approve")
        self.assertEqual(self.ended(execution)["status"], "SUCCEEDED")

    def test_a_failing_restore_tells_both(self):
        run = self.script(plan=[Error("Kopsline.KopsFailed", "bad zone")], replace__restore=[Error("Kopsline.Conflict", "someone wrote")])
        self.failed(
            run,
            ["replace:commit", "plan", "replace:restore", "console:finish"],
            "Kopsline.KopsFailed",
            "bad zone",
            "someone wrote",
        )
        self.assertIn("someone wrote", self.event(run, "console:finish")["cause"])

    def test_a_rejection_that_cannot_be_restored_has_failed(self):
        run = self.script(
            plan=[{"outcome": "changes", "gate": "manual", "approval_timeout_seconds": 60}],
            replace__restore=[Error("Kopsline.Conflict", "someone wrote")],
        )
        execution = self.start(run)
        self.answer(run, "update", "reject")
        ended = self.ended(execution)
        self.assertEqual((ended["status"], ended["error"]), ("FAILED", "Kopsline.Conflict"))
        self.assertIn("rejected", ended["cause"])
        self.assertIn("someone wrote", ended["cause"])

    def test_a_failing_finish_tells_both(self):
        run = self.script(plan=[Error("Kopsline.KopsFailed", "bad zone")], console__finish=[Error("Kopsline.Failed", "no bucket")])
        self.failed(
            run, ["replace:commit", "plan", "replace:restore", "console:finish"], "Kopsline.KopsFailed", "bad zone", "no bucket"
        )

    def test_a_good_run_that_cannot_be_closed_has_failed(self):
        run = self.script(console__finish=[Error("Kopsline.Failed", "no bucket")])
        execution = self.ended(self.start(run))
        self.assertEqual((execution["status"], execution["error"]), ("FAILED", "Kopsline.Failed"))
        self.assertIn("succeeded", execution["cause"])
        self.assertIn("no bucket", execution["cause"])

    def test_answers_that_nobody_knows_fail(self):
        steps = ["replace__commit", "plan", "update", "roll__preview", "roll__step"]
        unknown = [{"outcome": "surprise"}, {}, None, {"outcome": "busy"}, {"outcome": "progress"}, "text"]
        runs = [(step, answer, self.script(**{step: [answer]})) for step in steps for answer in unknown]
        executions = [self.start(run) for _, _, run in runs]
        for (step, answer, run), execution in zip(runs, executions, strict=True):
            with self.subTest(step=step, answer=answer):
                ended = self.ended(execution)
                self.assertEqual(ended["status"], "FAILED")
                self.assertEqual(self.steps(run)[-1], "console:finish", ended["cause"])
                restored = "replace:restore" in self.steps(run)
                self.assertEqual(restored, step in ("replace__commit", "plan"))

    def test_an_input_without_a_run_touches_nothing(self):
        for given in ("{}", "[]", '{"run": 7}', "null"):
            with self.subTest(given):
                execution = self.sfn.start_execution(stateMachineArn=self.pipeline, input=given)["executionArn"]
                ended = self.ended(execution)
                self.assertEqual((ended["status"], ended.get("error")), ("FAILED", "Kopsline.BadInput"))
                self.assertIn("names no run", ended["cause"])

    # History.

    def small(self):
        definition = load("pipeline")
        definition["States"]["Begin"]["Assign"]["maxTurns"] = 3
        return self.create("small", definition)

    def test_a_long_roll_goes_on_in_fresh_executions(self):
        step = {"outcome": "progress", "wait_seconds": 0}
        run = self.script(roll__step=[step] * 7 + [{"outcome": "done"}])
        first = self.ended(self.start(run, self.small()))
        self.assertEqual(json.loads(first["output"]), {"run": run, "result": "succeeded"}, first.get("cause"))
        self.assertEqual(
            self.steps(run), ["replace:commit", "plan", "update", "roll:preview"] + ["roll:step"] * 8 + ["console:finish"]
        )
        last = self.ended(first["executionArn"] + "-part-3")
        self.assertEqual(json.loads(last["output"]), {"run": run, "result": "succeeded"})

    def test_the_first_execution_lives_as_long_as_the_run(self):
        """The lock's holder is told by its execution: if that ended early, the next run would take the lock."""
        wait = {"outcome": "progress", "wait_seconds": 1}
        run = self.script(roll__step=[{"outcome": "progress", "wait_seconds": 0}] * 3 + [wait, wait, {"outcome": "done"}])
        first = self.start(run, self.small())
        while self.steps(run).count("roll:step") < 5:
            self.assertEqual(self.sfn.describe_execution(executionArn=first)["status"], "RUNNING")
            time.sleep(0.05)
        self.assertEqual(self.ended(first)["status"], "SUCCEEDED")

    def test_a_failure_in_a_continued_roll_closes_the_run_once(self):
        step = {"outcome": "progress", "wait_seconds": 0}
        run = self.script(roll__step=[step] * 4 + [Error("Kopsline.Failed", "no such group")])
        first = self.ended(self.start(run, self.small()))
        self.assertEqual((first["status"], first["error"]), ("FAILED", "Kopsline.PartFailed"))
        self.assertIn("-part-2", first["cause"])
        self.assertIn("no such group", first["cause"])
        self.assertEqual(
            self.steps(run), ["replace:commit", "plan", "update", "roll:preview"] + ["roll:step"] * 5 + ["console:finish"]
        )

    def test_a_long_wait_for_the_lock_goes_on_in_a_fresh_execution(self):
        busy = {"outcome": "busy", "wait_seconds": 0}
        run = self.script(replace__commit=[busy] * 3 + [{"outcome": "replaced"}])
        first = self.ended(self.start(run, self.small()))
        self.assertEqual(json.loads(first["output"])["result"], "succeeded")
        self.assertEqual(self.event(run, "replace:commit")["execution"], first["executionArn"] + "-part-2")

    def test_a_part_that_cannot_start_is_a_failure_of_this_run(self):
        run = self.script(replace__commit=[{"outcome": "busy", "wait_seconds": 0}])
        machine = self.small()
        taken = self.sfn.start_execution(stateMachineArn=machine, name=f"{run}-part-2", input="{}")["executionArn"]
        self.ended(taken)
        first = self.ended(self.start(run, machine))
        self.assertEqual(first["status"], "FAILED")
        self.assertIn("AlreadyExists", first["error"])
        self.assertEqual(self.steps(run)[-2:], ["replace:restore", "console:finish"])

    # The approve machine.

    def decide(self, given, answers=({"outcome": "recorded"},)):
        if isinstance(given, dict) and isinstance(given.get("approval"), str):
            self.lambdas.scripts[given["approval"]] = {"console:decide": list(answers)}
        execution = self.sfn.start_execution(stateMachineArn=self.approve, input=json.dumps(given))["executionArn"]
        return self.ended(execution)

    def test_a_decision_reaches_the_console(self):
        approval = uuid.uuid4().hex
        ended = self.decide({"approval": approval, "decision": "approve", "comment": 'say "yes"', "by": "ann"})
        self.assertEqual(json.loads(ended["output"]), {"outcome": "recorded"})
        event = self.event(approval, "console:decide")
        self.assertEqual(event.pop("execution"), ended["executionArn"])
        self.assertEqual(
            event, {"action": "decide", "approval": approval, "decision": "approve", "comment": 'say "yes"', "by": "ann"}
        )

    def test_an_order_reaches_the_console(self):
        run = uuid.uuid4().hex
        self.lambdas.scripts[run] = {"console:order": [{"outcome": "paused"}]}
        ended = self.ended(
            self.sfn.start_execution(stateMachineArn=self.approve, input=json.dumps({"run": run, "order": "pause"}))["executionArn"]
        )
        self.assertEqual(json.loads(ended["output"]), {"outcome": "paused"})
        event = self.event(run, "console:order")
        self.assertEqual(event.pop("execution"), ended["executionArn"])
        self.assertEqual(event, {"action": "order", "run": run, "order": "pause", "comment": None, "by": None})

    def test_comment_and_name_may_be_left_out(self):
        approval = uuid.uuid4().hex
        self.assertEqual(self.decide({"approval": approval, "decision": "reject"})["status"], "SUCCEEDED")
        event = self.event(approval, "console:decide")
        self.assertEqual((event["comment"], event["by"]), (None, None))

    def test_a_decision_that_is_none_is_refused(self):
        for given in ({}, {"approval": "a"}, {"decision": "approve"}, {"approval": "a", "decision": "yes"}, {"approval": 1, "decision": "approve"}, {"run": "a", "order": "stop"}):
            with self.subTest(given):
                ended = self.decide(given)
                self.assertEqual((ended["status"], ended.get("error")), ("FAILED", "Kopsline.BadInput"))
                self.assertIn('"decision": "approve" or "reject"', ended["cause"])

    def test_a_refused_decision_says_why(self):
        ended = self.decide({"approval": uuid.uuid4().hex, "decision": "approve"}, [Error("Kopsline.Conflict", "already decided")])
        self.assertEqual((ended["status"], ended["error"]), ("FAILED", "Kopsline.Conflict"))
        self.assertIn("already decided", ended["cause"])


if __name__ == "__main__":
    unittest.main()
