"""What of an event of Ansible is worth telling: pure, and little, whatever a host put into its result."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from exitguard.act.ansible_process.messages import COLLECTED_LIMIT_BYTES, Kind, Message, Status

#: The key of a task's result that is collected: see the result convention in docs/architecture.md.
COLLECTED_KEY = "exitguard"
_TEXT_LIMIT_CHARACTERS = 4_000
_DIFF_LIMIT_CHARACTERS = 20_000
_NAME_LIMIT_CHARACTERS = 200
_DEPTH_LIMIT = 32
_DIGITS_LIMIT_BITS = 64
#: Messages that say nothing but that something failed; what was said on standard error tells more.
_EMPTY_MESSAGES = ("", "non-zero return code", "MODULE FAILURE", "Module result deserialization failed")
#: What ansible-core 2.19 puts before every message.
_PREFIXES = ("Task failed: ", "Action failed: ")
_ASYNC_TIMEOUT = "async task did not complete within the requested time"  # ansible/executor/task_executor.py
_TOTALS = ("processed", "changed", "failures", "dark")


def reduced(event: Mapping[str, Any]) -> Iterator[Message]:
    """The messages that one event of ansible-runner comes to; none for most."""
    data = event.get("event_data")
    if not isinstance(data, dict):
        return
    name = event.get("event")
    if name == "playbook_on_stats":
        totals = {of: data.get(of) for of in _TOTALS}
        hosts = {of: [str(host) for host, number in found.items() if number] for of, found in totals.items() if isinstance(found, dict)}
        yield Message(Kind.TOTALS, hosts=hosts)
        return
    host = data.get("host")
    if not isinstance(name, str) or not isinstance(host, str) or not name.startswith("runner_"):
        return
    task = str(data.get("task") or "")[:_NAME_LIMIT_CHARACTERS]
    result = data.get("res")
    if name == "runner_on_file_diff":
        shown = str(event.get("stdout") or "").replace("\r\n", "\n").strip("\n")
        if shown:
            yield Message(Kind.DIFF, host, task, text=shown[:_DIFF_LIMIT_CHARACTERS])
        return
    yield from _of_task(name, host, task, result if isinstance(result, dict) else {}, ignored=bool(data.get("ignore_errors")))


def is_hidden(event: Mapping[str, Any]) -> bool:
    """Whether its task has no_log: ansible-core 2.19 prints the message of a failure all the same."""
    data = event.get("event_data")
    result = data.get("res") if isinstance(data, dict) else None
    return isinstance(result, dict) and bool(result.get("censored") or result.get("_ansible_no_log"))


def _of_task(name: str, host: str, task: str, result: dict[str, Any], *, ignored: bool) -> Iterator[Message]:
    match name:
        case "runner_on_start":
            yield Message(Kind.TASK, host, task, Status.STARTED)
        case "runner_on_skipped":
            yield Message(Kind.TASK, host, task, Status.SKIPPED)
        case "runner_on_ok":
            yield from _collected(host, task, result, whole=True)
            yield Message(Kind.TASK, host, task, Status.CHANGED if result.get("changed") is True else Status.OK)
        case "runner_on_failed":
            yield from _collected(host, task, result, whole=True)
            status = Status.IGNORED if ignored else Status.TIMED_OUT if _timed_out(result) else Status.FAILED
            if status is not Status.IGNORED:
                yield Message(Kind.FAILURE, host, task, status, _why(result))
            yield Message(Kind.TASK, host, task, status)
        case "runner_on_unreachable":
            yield Message(Kind.FAILURE, host, task, Status.UNREACHABLE, _why(result))
            yield Message(Kind.TASK, host, task, Status.UNREACHABLE)
        case "runner_item_on_ok":
            yield from _collected(host, task, result, whole=False)
        case "runner_item_on_failed":
            yield from _collected(host, task, result, whole=False)
            yield Message(Kind.ITEM_FAILURE, host, task, Status.TIMED_OUT if _timed_out(result) else Status.FAILED, _why(result))


def _collected(host: str, task: str, result: dict[str, Any], *, whole: bool) -> Iterator[Message]:
    """What one result holds for exitguard. The results of a loop come one by one before the result of the whole."""
    if whole and not result:
        yield Message(Kind.DROPPED, host, task, text="its result was too large to be read")
        return
    if COLLECTED_KEY not in result or (whole and "results" in result):
        return
    value = result[COLLECTED_KEY]
    problem = "expected a mapping" if not isinstance(value, dict) else _problem(value)
    if problem is None:
        message = Message(Kind.COLLECTED, host, task, value=_encodable(value))
        if len(message.to_line()) <= COLLECTED_LIMIT_BYTES:
            yield message
            return
        problem = f"more than {COLLECTED_LIMIT_BYTES} bytes"
    yield Message(Kind.DROPPED, host, task, text=f"what it has under `{COLLECTED_KEY}` cannot be kept: {problem}")


def _problem(value: object) -> str | None:
    """Why a value cannot be handed on as JSON; without recursion, since its depth is a host's choice."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEPTH_LIMIT:
            return f"more than {_DEPTH_LIMIT} levels deep"
        if isinstance(item, float) and not math.isfinite(item):
            return "a number that is none"
        if isinstance(item, int) and item.bit_length() > _DIGITS_LIMIT_BITS:
            return "a number with too many digits"
        below = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += ((each, depth + 1) for each in below)
    return None


def _encodable(value: Any) -> Any:
    """The same without lone halves of characters, which no file could hold."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_encodable(str(key)): _encodable(item) for key, item in value.items()}
        case list():
            return [_encodable(item) for item in value]
    return value


def _timed_out(result: dict[str, Any]) -> bool:
    """Of a task's `timeout`, or of its `async`."""
    return bool(result.get("timedout")) or str(result.get("msg")).startswith(_ASYNC_TIMEOUT)


def _why(result: dict[str, Any]) -> str:
    message = result.get("censored") or result.get("msg") or ""
    text = message if isinstance(message, str) else json.dumps(message, default=str)
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    said = next(
        (result[key] for key in ("module_stderr", "stderr", "module_stdout") if isinstance(result.get(key), str) and result[key].strip()),
        "",
    )
    if said and text.partition(":")[0].rstrip(". ") in _EMPTY_MESSAGES:
        # A failing program tells the reason last.
        text = f"{text}: {said[-_TEXT_LIMIT_CHARACTERS:].strip().splitlines()[-1]}" if text else said[-_TEXT_LIMIT_CHARACTERS:]
    return text[:_TEXT_LIMIT_CHARACTERS]
