"""LocalStack's Step Functions, without Java, with the differences from AWS that matter to Kopsline put right.

Run in the `localstack` virtual environment: `python -m stack.sfn_server`, configured by environment
variables (see `components.py`). Written for localstack-core 4.14.0. Every `fix_*` function says what AWS
does and what LocalStack does instead.
"""

import functools
import hashlib
import json
import sys
import threading
import types
import uuid

# The module that runs JSONata in Java is imported before it can be replaced, and its imports must not fail.
sys.modules.setdefault("jpype", types.ModuleType("jpype"))
sys.modules.setdefault("jpype.imports", types.ModuleType("jpype.imports"))

import jsonata
from localstack.aws import spec
from localstack.aws.api import stepfunctions as api
from localstack.services.stepfunctions.asl.component.common.assign.assign_template_value_terminal import (
    AssignTemplateValueTerminalLit,
)
from localstack.services.stepfunctions.asl.component.common.error_name.states_error_name import (
    StatesErrorName,
)
from localstack.services.stepfunctions.asl.component.common.error_name.states_error_name_type import (
    StatesErrorNameType,
)
from localstack.services.stepfunctions.asl.component.intrinsic import jsonata as intrinsics
from localstack.services.stepfunctions.asl.component.state.state_execution.state_task.service.state_task_service_callback import (
    StateTaskServiceCallback,
)
from localstack.services.stepfunctions.asl.eval.callback import callback
from localstack.services.stepfunctions.asl.eval.environment import Environment
from localstack.services.stepfunctions.asl.eval.program_state import ProgramStopped
from localstack.services.stepfunctions.asl.jsonata import jsonata as jsonata_in_java
from localstack.services.stepfunctions.asl.utils.encoding import to_json_str
from localstack.services.stepfunctions.backend.execution import Execution
from localstack.services.stepfunctions.provider import StepFunctionsProvider

DEFAULT_HISTORY_PAGE = 100


def fix_jsonata_engine() -> None:
    """AWS evaluates JSONata and adds `$uuid` and `$hash`.

    LocalStack needs a Java virtual machine for the first and answers the others with a sentence.
    """

    def evaluate(expression):
        try:
            compiled = jsonata.Jsonata(expression)
            compiled.register_lambda("__uuid", lambda: str(uuid.uuid4()))
            compiled.register_lambda("__hash", _hash)
            # Through JSON, because the library answers with list types of its own.
            return json.loads(json.dumps(compiled.evaluate(None), default=list))
        except Exception as error:
            raise jsonata_in_java.JSONataException("UNKNOWN", str(error)) from error

    jsonata_in_java.eval_jsonata_expression = evaluate
    declarations = intrinsics._DECLARATION_BY_VARIABLE_REFERENCE
    declarations["$uuid"] = "$uuid:=function(){$__uuid()};"
    declarations["$hash"] = "$hash:=function($value,$algorithm){$__hash($value,$algorithm)};"


def _hash(value: str, algorithm: str) -> str:
    return hashlib.new(algorithm.replace("-", "").lower(), value.encode()).hexdigest()


def fix_jsonata_string_variables() -> None:
    """AWS binds variables of any content.

    LocalStack pastes strings into the expression unescaped: a quotation mark in a value breaks it.
    """

    def encode(bindings):
        return "".join(f"{name}:={to_json_str(value, separators=(',', ':'))};" for name, value in bindings.items())

    jsonata_in_java.encode_jsonata_variable_declarations = encode


def fix_assigned_string_literals() -> None:
    """AWS assigns the string that the definition's JSON means.

    LocalStack assigns its source text, backslashes included.
    """
    create = AssignTemplateValueTerminalLit.__init__

    def __init__(literal, value):
        if isinstance(value, str):
            value = json.loads(f'"{value}"')
        create(literal, value)

    AssignTemplateValueTerminalLit.__init__ = __init__


def fix_stop_of_waiting_task() -> None:
    """AWS aborts an execution at once, also while a task waits for its token, and keeps error and cause.

    LocalStack goes on waiting, loses both, and may let a late failure of the task replace the abortion.
    """
    stop = Execution.stop
    set_error = Environment.set_error

    def stop_and_wake(execution, stop_date, error, cause):
        stop(execution, stop_date=stop_date, error=error, cause=cause)
        execution.error, execution.cause = error, cause
        if execution.exec_worker and execution.exec_worker.env:
            for endpoint in list(execution.exec_worker.env.callback_pool_manager._pool.values()):
                endpoint.notify(callback.CallbackOutcomeSuccess(endpoint.callback_id, "{}"))

    def set_error_unless_stopped(environment, error):
        if not isinstance(environment._program_state, ProgramStopped):
            set_error(environment, error=error)

    Execution.stop = stop_and_wake
    Environment.set_error = set_error_unless_stopped


def fix_answers_to_tokens() -> None:
    """AWS takes one answer for a token, even before the task began to wait, and refuses any later one,
    or one after a timeout or the execution's end, with TaskTimedOut; output that is not JSON is InvalidOutput.

    LocalStack takes a second answer while the execution runs, calls a token of an ended one invalid, and
    fails with a 500 while any other execution is just starting.
    """
    one_at_a_time = threading.Lock()

    def send_task_success(provider, context, task_token, output, **_):
        try:
            json.loads(output)
        except ValueError:
            raise api.InvalidOutput(f"Invalid Output: 'Error parsing output: {output[:100]}'") from None
        with one_at_a_time:
            _open_task(provider, context, task_token).notify(
                callback.CallbackOutcomeSuccess(callback_id=task_token, output=output)
            )
        return api.SendTaskSuccessOutput()

    def send_task_failure(provider, context, task_token, error=None, cause=None, **_):
        with one_at_a_time:
            _open_task(provider, context, task_token).notify(
                callback.CallbackOutcomeFailure(callback_id=task_token, error=error, cause=cause)
            )
        return api.SendTaskFailureOutput()

    def send_task_heartbeat(provider, context, task_token, **_):
        with one_at_a_time:
            _open_task(provider, context, task_token).notify_heartbeat()
        return api.SendTaskHeartbeatOutput()

    for operation in (send_task_success, send_task_failure, send_task_heartbeat):
        _replace_operation(operation)


def _open_task(provider, context, task_token) -> callback.CallbackEndpoint:
    """Where the task with this token waits, or the error AWS gives when there is none any more."""
    for execution in list(provider.get_store(context).executions.values()):
        environment = execution.exec_worker.env if execution.exec_worker else None
        endpoint = environment.callback_pool_manager.get(task_token) if environment else None
        if endpoint is None:
            continue
        closed = endpoint.consumer_error or endpoint.get_outcome() or endpoint._notify_event.is_set()
        if closed or execution.exec_status != api.ExecutionStatus.RUNNING:
            raise api.TaskTimedOut("Task Timed Out: 'Provided task does not exist anymore'")
        return endpoint
    raise api.InvalidToken("Invalid Token: 'Invalid token'")


def _replace_operation(operation) -> None:
    """Puts `operation` in the provider's place of the same name, with the marks by which it is called."""
    original = getattr(StepFunctionsProvider, operation.__name__)
    setattr(StepFunctionsProvider, operation.__name__, functools.wraps(original)(operation))


def fix_token_of_each_attempt() -> None:
    """AWS issues a new token for each attempt of a task and closes it when the attempt ends, however it ends.

    LocalStack uses one for all attempts, so that a retry finds the answer of the attempt before, and
    leaves it open for a while after a timeout, because the thread that waits is not told.
    """
    evaluate = StateTaskServiceCallback._evaluate_with_timeout

    def evaluate_attempt(task, env):
        pool = env.callback_pool_manager
        context = env.states.context_object
        if "Task" not in context.context_object_data:
            evaluate(task, env)
            return
        if context.context_object_data["State"]["RetryCount"]:
            pool.add(context.update_task_token())
        endpoint = pool.get(context.context_object_data["Task"]["Token"])
        try:
            evaluate(task, env)
        finally:
            endpoint.interrupt_all()

    StateTaskServiceCallback._evaluate_with_timeout = evaluate_attempt


def fix_early_answer_with_heartbeat() -> None:
    """AWS accepts answers and heartbeats from the moment it issued the token.

    LocalStack loses an answer that comes before the task began to wait for heartbeats, and fails the heartbeat.
    """
    setup = callback.CallbackEndpoint.setup_heartbeat_endpoint

    def setup_and_notify(endpoint, heartbeat_seconds):
        heartbeat = setup(endpoint, heartbeat_seconds)
        if endpoint.get_outcome() is not None:
            heartbeat.notify()
        return heartbeat

    def notify_heartbeat(endpoint):
        if endpoint._heartbeat_endpoint:
            endpoint._heartbeat_endpoint.notify()
        return True

    callback.CallbackEndpoint.setup_heartbeat_endpoint = setup_and_notify
    callback.CallbackEndpoint.notify_heartbeat = notify_heartbeat


def fix_heartbeat_error_name() -> None:
    """AWS names a missed heartbeat States.HeartbeatTimeout.

    LocalStack names it States.Timeout and does not end the wait.
    """
    wait = StateTaskServiceCallback._wait_for_task_token_heartbeat
    from_error = StateTaskServiceCallback._from_error

    def wait_for_heartbeat(task, env, callback_endpoint, heartbeat_endpoint):
        outcome = wait(task, env, callback_endpoint, heartbeat_endpoint)
        if isinstance(outcome, callback.HeartbeatTimedOut):
            callback_endpoint.report(outcome)
        return outcome

    def from_heartbeat_error(task, env, ex):
        event = from_error(task, env=env, ex=ex)
        if isinstance(ex, callback.HeartbeatTimeoutError):
            name = StatesErrorNameType.StatesHeartbeatTimeout
            event.error_name = StatesErrorName(typ=name)
            event.event_details["taskTimedOutEventDetails"]["error"] = name.to_name()
        return event

    StateTaskServiceCallback._wait_for_task_token_heartbeat = wait_for_heartbeat
    StateTaskServiceCallback._from_error = from_heartbeat_error


def fix_history_paging() -> None:
    """AWS pages GetExecutionHistory by `maxResults` (100 unless told) and `nextToken`, forwards or backwards.

    LocalStack gives everything at once, and `reverseOrder` reverses the stored history itself.
    """
    whole_history = StepFunctionsProvider.get_execution_history

    def get_execution_history(
        provider, context, execution_arn, max_results=None, reverse_order=None, next_token=None, **_
    ):
        events = list(whole_history(provider, context, execution_arn)["events"])
        if reverse_order:
            events.reverse()
        first = int(next_token or 0)
        last = first + (max_results or DEFAULT_HISTORY_PAGE)
        page = api.GetExecutionHistoryOutput(events=events[first:last])
        if last < len(events):
            page["nextToken"] = str(last)
        return page

    _replace_operation(get_execution_history)


def know_one_service_only() -> None:
    """Spares the first request some seconds, in which LocalStack would read the models of all services."""
    spec.list_services = lambda: [spec.load_service("stepfunctions")]


def main() -> None:
    """Applies the fixes and runs LocalStack until SIGTERM."""
    know_one_service_only()
    for name, fix in list(globals().items()):
        if name.startswith("fix_"):
            fix()
    # Some modules had imported the replaced functions by name.
    for name in ("eval_jsonata_expression", "encode_jsonata_variable_declarations"):
        for module in list(sys.modules.values()):
            if module.__name__.startswith("localstack.") and hasattr(module, name):
                setattr(module, name, getattr(jsonata_in_java, name))

    from localstack.runtime.main import main as run_localstack

    run_localstack()


if __name__ == "__main__":
    main()
