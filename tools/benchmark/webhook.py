"""The webhook's latency, and what it starts. S3, GitLab and Step Functions behind it are the local ones."""

import json
import sys
import time
import uuid

from stack.gitlab import sign
from tools.benchmark.runtime import Runtime
from tools.benchmark.table import milliseconds, percentile, say
from tools.benchmark.workplace import ROOT, binary

DELIVERIES, COMMITS = 1000, 10


def webhook(table, workplace, cluster):
    say(f"webhook: {DELIVERIES} signed deliveries of {COMMITS} commits, then all of them once more")
    # What is started only has to be counted here.
    client = workplace.stack.aws("stepfunctions")
    machine = client.create_state_machine(
        name="bench",
        roleArn="arn:aws:iam::000000000000:role/bench",
        definition=json.dumps({"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}}),
    )["stateMachineArn"]
    runtime = Runtime(binary("webhook"), workplace.environment("webhook") | {"KOPSLINE_PIPELINE_ARN": machine})
    bodies = [_push(workplace, cluster, number) for number in range(COMMITS)]
    deliveries = [_signed(workplace.gitlab, bodies[number % COMMITS]) for number in range(DELIVERIES)]
    table.heading(f"webhook: {DELIVERIES} signed deliveries of {COMMITS} commits, one after the other, to one warm process")
    first = [_answered(runtime, delivery) for delivery in deliveries]
    table.add("a commit's first delivery: p50", milliseconds(percentile(first[:COMMITS], 50)))
    for what, times in (("each delivery new", first), ("each sent again", [_answered(runtime, d) for d in deliveries])):
        table.add(f"{what}: p50", milliseconds(percentile(times, 50)))
        table.add(f"{what}: p99", milliseconds(percentile(times, 99)), goal="at most 10 ms")
    runtime.stop()
    pages = client.get_paginator("list_executions").paginate(stateMachineArn=machine)
    table.add("executions started", sum(len(page["executions"]) for page in pages), goal=f"{COMMITS}, one a commit")


def _answered(runtime, delivery):
    """The seconds to a delivery's answer, which must be an acceptance: another is quick but worth nothing."""
    answer, seconds = runtime.invoke(delivery)
    if answer.get("statusCode") != 202:
        sys.exit(f"error: the webhook answered {answer}")
    return seconds


def _signed(gitlab, body):
    """A delivery of a push as GitLab signs it, with an id of its own."""
    event = json.loads((ROOT / "tests/events/webhook-push.json").read_text())
    event["body"] = body
    delivery, now = str(uuid.uuid4()), str(int(time.time()))
    del event["headers"]["x-gitlab-token"]
    event["headers"] |= {
        "webhook-id": delivery,
        "webhook-timestamp": now,
        "webhook-signature": sign(gitlab["hook_signing_token"], delivery, now, body.encode()),
    }
    return event


def _push(workplace, cluster, number):
    """The body of a push hook for a new commit that changes the cluster's file."""
    gitlab = workplace.gitlab
    commit = workplace.commit({f"{cluster}.yaml": f"# {number}\n"}, f"Change {number}")
    body = json.loads(json.loads((ROOT / "tests/events/webhook-push.json").read_text())["body"])
    body |= {"before": commit["before"], "after": commit["after"], "checkout_sha": commit["after"],
             "ref": commit["ref"], "project_id": gitlab["project_id"]}  # fmt: skip
    body["project"] |= {
        "id": gitlab["project_id"],
        "path_with_namespace": gitlab["project"],
        "default_branch": gitlab["default_branch"],
    }
    return json.dumps(body)
