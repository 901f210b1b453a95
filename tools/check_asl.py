#!/usr/bin/env python3
"""Checks the state machines in infra/, which neither SAM nor cfn-lint reads.

    tools/check_asl.py [DEFINITION...] [--template template.yaml]

Beyond the language's own rules it holds ours: every task has a timeout, retries and a catch; loops are counted, because
an execution may have 25,000 history events; payloads carry references, never documents, because they may have 262,144
bytes; and what a definition wants substituted is what the template gives.
"""

import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

LAMBDA = "arn:aws:states:::lambda:invoke"
CALLBACK = LAMBDA + ".waitForTaskToken"
START = "arn:aws:states:::states:startExecution.sync:2"
RESOURCES = {LAMBDA, CALLBACK, START}

TERMINAL = {"Succeed", "Fail"}
TYPES = TERMINAL | {"Task", "Choice", "Wait", "Pass"}
JSONPATH_FIELDS = {
    "InputPath", "OutputPath", "ResultPath", "ResultSelector", "Parameters", "Result", "TimeoutSecondsPath",
    "HeartbeatSecondsPath", "SecondsPath", "TimestampPath", "ErrorPath", "CausePath",
}  # fmt: skip

RETRY_FIELDS = {"ErrorEquals", "IntervalSeconds", "BackoffRate", "MaxDelaySeconds", "MaxAttempts", "JitterStrategy"}
MOST_ATTEMPTS = 10
# Trying again cannot mend these: the input, the cluster or a person has to change first.
NEVER_RETRIED = {
    "Kopsline.BadInput", "Kopsline.Conflict", "Kopsline.KopsFailed", "Kopsline.LockLost", "Kopsline.Failed",
    "States.ALL", "States.TaskFailed",
}  # fmt: skip
# How a killed or overloaded function looks on AWS and on the local stack (ministack, LocalStack).
LAMBDA_TRANSIENT = {
    "Kopsline.Transient", "Lambda.ServiceException", "Lambda.AWSLambdaException", "Lambda.SdkClientException",
    "Lambda.TooManyRequestsException", "Lambda.Unknown", "Sandbox.Timedout", "Runtime.ExitError", "Runtime.Unknown",
}  # fmt: skip

# What an expression may read, by the field it stands in. Everything else would let a document through.
FLAGS = {"run", "resume", "part", "phase", "upgrade", "approval", "decision", "comment", "by", "order", "gate"}
FLAGS |= {"wait_seconds", "approval_timeout_seconds", "timeout_seconds", "tell"}
CONTEXT = {"Execution.Id", "State.EnteredTime", "Task.Token", "StateMachine.Id"}
ERROR = {"states.errorOutput.Error", "states.errorOutput.Cause", "states.input.Error", "states.input.Cause"}
SMALL = {f"states.input.{name}" for name in FLAGS} | {f"states.context.{name}" for name in CONTEXT}
READABLE = {
    "Arguments": SMALL,
    "Assign": SMALL | ERROR | {"states.result.Payload.outcome", "states.result.Payload.upgrade", "states.result.Output.result"},
    # A function's answer is a handful of flags by contract; it is the next state's input.
    "Output": SMALL | ERROR | {"states.result.Payload", "states.result", "states.input"},
}
FREE_TEXT = ("states.input.Cause", "states.errorOutput.Cause", "states.input.comment", "states.input.by")
FUNCTIONS = {"type", "string", "substring", "max", "min", "not"}

EXPRESSION = re.compile(r"^\{%(.*)%\}$", re.DOTALL)
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
REFERENCE = re.compile(r"\$([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(\s*\()?")
COUNTED = re.compile(r"\$(\w+) \+ 1\b")
SUBSTITUTION = re.compile(r"\$\{(\w+)\}")


def no_duplicates(pairs):
    """A second key of the same name would silently win."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return found


def expressions(value):
    """All JSONata expressions in `value`, without their string literals."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)
    elif isinstance(value, str) and (match := EXPRESSION.match(value)):
        yield QUOTED.sub("''", match[1])


def assignments(state):
    """All Assign blocks of a state: its own, its rules' and its catchers'."""
    for holder in (state, *state.get("Choices", []), *state.get("Catch", [])):
        yield holder.get("Assign", {})


def targets(state):
    """The names of the states that may follow."""
    found = [state.get("Next"), state.get("Default")]
    found += [holder.get("Next") for holder in (*state.get("Choices", []), *state.get("Catch", []))]
    return [name for name in found if name is not None]


def reachable(start, graph):
    """Everything that can be reached from `start`, itself included."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, [])
    return seen


class Check:
    """The problems of one definition."""

    def __init__(self, definition):
        self.definition = definition
        self.states = definition.get("States") or {}
        self.graph = {name: targets(state) for name, state in self.states.items()}
        self.variables = {name for state in self.states.values() for block in assignments(state) for name in block}
        self.problems = []

    def say(self, state, problem):
        self.problems.append(f"{state}: {problem}")

    def run(self):
        if self.definition.get("QueryLanguage") != "JSONata":
            self.say("definition", "QueryLanguage must be JSONata")
        for name, state in self.states.items():
            if state.get("Type") not in TYPES:
                self.say(name, f"state type {state.get('Type')!r} is not one that is used here")
                continue
            self.fields(name, state)
            self.references(name, state)
            if state["Type"] == "Task":
                self.task(name, state)
        self.shape()
        self.loops()
        return self.problems

    def shape(self):
        """Every state is reached, and from every state the end is reached."""
        start = self.definition.get("StartAt")
        if start not in self.states:
            self.say("definition", f"StartAt names {start!r}, which is no state")
        for name, following in self.graph.items():
            for target in following:
                if target not in self.states:
                    self.say(name, f"goes to {target!r}, which is no state")
        for name in sorted(self.states.keys() - reachable(start, self.graph)):
            self.say(name, "is never reached")
        ends = {name for name, state in self.states.items() if state.get("Type") in TERMINAL}
        for name in self.states:
            if not reachable(name, self.graph) & ends:
                self.say(name, "leads to no Succeed or Fail state")

    def fields(self, name, state):
        kind = state["Type"]
        for field in sorted(JSONPATH_FIELDS & state.keys()):
            self.say(name, f"{field} belongs to JSONPath, the definition is in JSONata")
        if state.get("End"):
            self.say(name, "ends the execution; go to a Succeed or Fail state, which says how it ended")
        elif kind not in TERMINAL | {"Choice"} and "Next" not in state:
            self.say(name, "has no Next")
        if kind in TERMINAL and targets(state):
            self.say(name, f"is a {kind} state, nothing follows it")
        if kind == "Choice" and "Default" not in state:
            self.say(name, "has no Default: an unforeseen answer would end the execution without its failure path")
        if kind == "Fail" and not {"Error", "Cause"} <= state.keys():
            self.say(name, "needs an Error and a Cause")

    def task(self, name, state):
        resource = state.get("Resource")
        if resource not in RESOURCES:
            self.say(name, f"resource {resource!r} is not a known integration")
        if "TimeoutSeconds" not in state:
            self.say(name, "has no TimeoutSeconds: an answer that never comes would hold it for a year")
        self.retries(name, state, resource)
        self.catches(name, state)
        payload = state.get("Arguments", {}).get("Payload", {})
        if resource == CALLBACK and "{% $states.context.Task.Token %}" not in payload.values():
            self.say(name, "waits for a token that it gives to nobody")
        if resource in (LAMBDA, CALLBACK) and not SUBSTITUTION.fullmatch(
            str(state.get("Arguments", {}).get("FunctionName"))
        ):
            self.say(name, "FunctionName must be a substitution such as ${PlanFunctionArn}")

    def retries(self, name, state, resource):
        retried = set()
        for retrier in state.get("Retry", []):
            errors = set(retrier.get("ErrorEquals", []))
            if twice := retried & errors:
                self.say(name, f"retries {', '.join(sorted(twice))} twice: only the first counts")
            retried |= errors
            if missing := RETRY_FIELDS - retrier.keys():
                self.say(name, f"a retry lacks {', '.join(sorted(missing))}")
            if not 1 <= retrier.get("MaxAttempts", 1) <= MOST_ATTEMPTS:
                self.say(name, f"MaxAttempts must be 1 to {MOST_ATTEMPTS}")
            if retrier.get("JitterStrategy", "FULL") != "FULL":
                self.say(name, "JitterStrategy must be FULL, else all runs retry at the same moment")
        if not retried:
            self.say(name, "has no Retry")
        if wrong := retried & NEVER_RETRIED:
            self.say(name, f"retries {', '.join(sorted(wrong))}, which trying again cannot mend")
        if resource in (LAMBDA, CALLBACK) and retried and (missing := LAMBDA_TRANSIENT - retried):
            self.say(name, f"does not retry {', '.join(sorted(missing))}")
        if resource == CALLBACK and "States.Timeout" in retried:
            self.say(name, "retries States.Timeout, which here means that nobody answered")

    def catches(self, name, state):
        catchers = state.get("Catch", [])
        if not catchers or catchers[-1].get("ErrorEquals") != ["States.ALL"]:
            self.say(name, "must catch States.ALL, alone and last")
        if any("States.ALL" in catcher.get("ErrorEquals", []) for catcher in catchers[:-1]):
            self.say(name, "catches States.ALL before its last Catch")

    def references(self, name, state):
        for holder in (state, *state.get("Choices", []), *state.get("Catch", [])):
            for field, value in holder.items():
                if field not in ("Choices", "Catch", "Retry"):
                    for expression in expressions(value):
                        self.expression(name, field, expression)

    def expression(self, name, field, expression):
        allowed = READABLE.get(field)
        for match in REFERENCE.finditer(expression):
            path, call = match[1], match[2]
            before = expression[: match.start()]
            if call:
                if path not in FUNCTIONS:
                    self.say(name, f"{field} calls ${path}, which is not among the functions used here")
            elif not path.startswith("states."):
                if path not in self.variables:
                    self.say(name, f"{field} reads ${path}, which is assigned nowhere")
            elif allowed is not None and path not in allowed:
                self.say(name, f"{field} reads ${path}: payloads are made of the run's id, tokens and flags only")
            elif path in FREE_TEXT and not before.endswith(("$substring(", "$type(")):
                self.say(name, f"{field} takes ${path} at any length; use $substring")
            elif path == "states.input" and not before.endswith("$string("):
                self.say(name, f"{field} passes its whole input on")
        if "$string($states.input)" in expression and "$substring($string($states.input)," not in expression:
            self.say(name, f"{field} takes the whole input at any length; use $substring")

    def loops(self):
        """Every loop passes a state that counts, and every counter is compared with its limit."""
        counters = {}
        for name, state in self.states.items():
            for variable, value in state.get("Assign", {}).items():
                if variable in (match[1] for text in expressions(value) for match in COUNTED.finditer(text)):
                    counters[name] = variable
        conditions = " ".join(
            text for state in self.states.values() for rule in state.get("Choices", []) for text in expressions(rule)
        )
        for name, variable in counters.items():
            if not re.search(rf"\${variable} (<|<=|>|>=) \$\w+", conditions):
                self.say(name, f"counts ${variable}, but no Choice compares it with a limit")
        uncounted = {
            name: [target for target in following if target not in counters]
            for name, following in self.graph.items()
            if name not in counters
        }
        for name, following in uncounted.items():
            if any(name in reachable(target, uncounted) for target in following):
                self.say(name, "is in a loop that nothing counts")


def template_substitutions(text):
    """DefinitionUri -> substitution -> value, of every state machine in a SAM template.

    The template is YAML with CloudFormation's tags; its layout by indentation is all that is needed here.
    """
    found = {}
    for block in re.split(r"^  (?=\w+:$)", text, flags=re.MULTILINE):
        uri = re.search(r"^ +DefinitionUri: *(\S+)$", block, re.MULTILINE)
        if uri:
            given = re.search(r"^( +)DefinitionSubstitutions:\n((?:\1 +.*\n)*)", block, re.MULTILINE)
            lines = given[2].splitlines() if given else []
            found[uri[1]] = dict(re.split(r": *", line.strip(), maxsplit=1) for line in lines)
    return found


def check_substitutions(text, given):
    """What the definition wants against what the template gives it."""
    if given is None:
        return ["template: no state machine has this DefinitionUri"]
    wanted = set(SUBSTITUTION.findall(text))
    problems = [f"template: gives no substitution {name}" for name in sorted(wanted - given.keys())]
    problems += [f"template: substitution {name} is used nowhere" for name in sorted(given.keys() - wanted)]
    for name in sorted(wanted & given.keys()):
        function = name.removesuffix("Arn")
        if given[name] != f"!GetAtt {function}.Arn":
            problems.append(f"template: {name} is {given[name]}, not !GetAtt {function}.Arn")
    return problems


def check_text(text):
    """The problems of a definition given as text."""
    try:
        definition = json.loads(text, object_pairs_hook=no_duplicates)
    except ValueError as error:
        return [f"definition: not good JSON: {error}"]
    return Check(definition).run()


def main():
    parser = argparse.ArgumentParser(description="Checks the state machines' definitions.")
    parser.add_argument("definitions", nargs="*", type=pathlib.Path, default=sorted(ROOT.glob("infra/*.asl.json")))
    parser.add_argument("--template", type=pathlib.Path, default=ROOT / "template.yaml")
    arguments = parser.parse_args()
    substitutions = template_substitutions(arguments.template.read_text())
    failed = False
    for path in arguments.definitions:
        text = path.read_text()
        uri = path.resolve().relative_to(arguments.template.resolve().parent).as_posix()
        problems = check_text(text) + check_substitutions(text, substitutions.get(uri))
        for problem in problems:
            print(f"{path}: {problem}", file=sys.stderr)
        failed = failed or bool(problems)
    if not arguments.definitions:
        print("no definitions found", file=sys.stderr)
        failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
