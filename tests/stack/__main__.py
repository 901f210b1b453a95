"""`python -m stack up`: see `up --help`."""

import argparse
import os
import signal
import sys
from pathlib import Path

from stack import kubernetes, up
from stack.processes import adopt_orphans, end_with_parent


def main() -> int:
    """Runs the stack in a child process that outlives this one only for as long as it needs to clean up.

    Whoever kills this process, even with SIGKILL, ends the stack: the kernel tells the child, which then
    stops everything in order.
    """
    arguments = _parser().parse_args()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        adopt_orphans()
        up.catch_signals()
        end_with_parent(signal.SIGTERM, parent)
        os._exit(up.run(arguments))
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: os.kill(child, signal.SIGTERM))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) % 256


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stack", description="Everything Kopsline needs, on one machine.")
    command = parser.add_subparsers(required=True).add_parser(
        "up",
        help="start it all, print one line of JSON when it is ready, stop when stdin closes or on SIGTERM",
        description="Starts emulated AWS, a GitLab stand-in and a file server on loopback and deploys a SAM "
        "template there. When all is ready, prints one line of JSON on stdout; stops and leaves nothing "
        "running when stdin closes or on SIGINT or SIGTERM. Values given after `=` may contain "
        "{gitlab_url}, {gitlab_token}, {gitlab_project}, {gitlab_project_id}, {hook_signing_token}, "
        "{hook_secret_token}, {files_url}, {aws_url}, {sfn_url}, {lambda_url}, {kubernetes_url} and {architecture}.",
    )
    command.add_argument("--home", type=Path, required=True, help="a folder for logs, repositories and scratch files")
    command.add_argument(
        "--localstack-python",
        default=os.environ.get("STACK_LOCALSTACK_PYTHON"),
        help="Python of the virtual environment with requirements-localstack.txt (STACK_LOCALSTACK_PYTHON)",
    )
    command.add_argument("--template", type=Path, help="SAM template to deploy; without it nothing is deployed")
    command.add_argument(
        "--functions",
        type=Path,
        help="where the binaries are: of `sam build`, `cargo lambda build` or `cargo build` (target/debug)",
    )
    command.add_argument(
        "--values",
        type=Path,
        help='JSON file {"parameters": {}, "secrets": {}, "environment": {}, "buckets": []} for the template; '
        "the flags below add to it and win",
    )
    command.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE", help="of the template")
    command.add_argument("--secret", action="append", default=[], metavar="LOGICAL_ID=VALUE", help="a secret's value")
    command.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="added to every function")
    command.add_argument("--bucket", action="append", default=[], help="one more bucket, versioned")
    command.add_argument("--kops", metavar="VERSION=FILE", help="a kops binary for the functions, put into RunBucket")
    command.add_argument(
        "--kubernetes",
        type=Path,
        metavar="PROGRAM",
        help="what tools/kubernetes/get prints: a Kubernetes API, which the cluster's instances join as nodes",
    )
    command.add_argument(
        "--kubernetes-cluster",
        default=kubernetes.DEFAULT_CLUSTER,
        metavar="NAME",
        help="the cluster that it belongs to (%(default)s)",
    )
    command.add_argument(
        "--kubernetes-keyset",
        metavar="PLACE",
        help="kOps' keyset of the cluster's CA, a file or s3://BUCKET/KEY: the API takes it over as soon as it is there",
    )
    command.add_argument("--project", default="platform/clusters", help="the GitLab project's path")
    command.add_argument("--content", type=Path, help="a folder for the project's first commit")
    command.add_argument("--replace", action="append", default=[], metavar="OLD=NEW", help="in that folder's files")
    command.add_argument("--no-stdin", action="store_true", help="do not stop when stdin closes")
    command.add_argument("--timeout", type=float, default=120, help="seconds the programs may take to come up")
    return parser


if __name__ == "__main__":
    sys.exit(main())
