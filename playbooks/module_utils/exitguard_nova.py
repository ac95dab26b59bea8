# SPDX-License-Identifier: Apache-2.0
"""The API of an OpenStack cloud, for the modules that change one thing in it: one request at a time, each bounded, each told in words."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLateError
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ansible.module_utils.exitguard_host_step import DONE, FAILED, REFUSED, Ended

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openstack
        from keystoneauth1 import adapter
except ImportError as import_error:
    openstack = None
    WHY_NO_OPENSTACK = str(import_error)

_TRUE = ("true", "on", "yes", "1", "t", "y")
_FALSE = ("false", "off", "no", "0", "f", "n")
_WORDS_CHARACTERS = 300
_LIMIT_BYTES = 16 * 1024 * 1024
#: Authentication takes up to four answers: Keystone's versions, the token, the versions of Nova.
_ANSWERS_TO_OPEN = 4
#: The newest microversion that these modules have been read against.
_NEWEST = (2, 100)
OK, CREATED, ACCEPTED, NO_CONTENT, FORBIDDEN, NOT_FOUND, CONFLICT = 200, 201, 202, 204, 403, 404, 409

#: The options that every module for a cloud has.
CLOUD_OPTIONS = {
    "cloud": {"type": "str", "default": ""},
    "cloud_id": {"type": "str", "default": ""},
    "timeout_seconds": {"type": "int", "default": 60},
}


def wish(text: str | None) -> bool | None:
    """A property's text as a wish (oslo_utils.strutils.bool_from_string); None where silent, not shown, or no boolean."""
    lowered = (text or "").strip().lower()
    return True if lowered in _TRUE else False if lowered in _FALSE else None


class CloudError(Exception):
    """A request that was not answered as expected; the message says which, and how it was answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Cloud:
    """One cloud of clouds.yaml, or of the OS_ variables where the name is empty."""

    def __init__(self, name: str, timeout_seconds: int) -> None:
        self.told = name or "the cloud of the OS_ variables"
        if openstack is None:
            raise CloudError(f"{WHY_NO_OPENSTACK}. Expected openstacksdk in the Python that runs this module")
        self._region: Any = None
        self._adapters: dict[str, Any] = {}
        self._timeout_seconds = timeout_seconds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data, project = within(timeout_seconds * _ANSWERS_TO_OPEN, lambda: self._open(name))
                endpoint = data and (data.catalog_url or data.url)
            except TooLateError:
                seconds = timeout_seconds * _ANSWERS_TO_OPEN
                raise CloudError(f"{self.told}: no token and no compute API within {seconds} seconds") from None
            except Exception as error:
                raise CloudError(f"{self.told}: {_first_line(error)}") from error
        if not endpoint:
            raise CloudError(f"{self.told}: its catalogue has no compute service for this region")
        offered = getattr(data, "max_microversion", None) or (2, 1)
        self.microversion: tuple[int, ...] = min(tuple(offered), _NEWEST)
        self.id = cloud_id(endpoint, project)

    def nova(
        self, verb: str, path: str, body: Any = None, *, expected: tuple[int, ...] = (OK,), microversion: tuple[int, int] | None = None
    ) -> Any:
        """The JSON of Nova's answer, None for an empty one. Raises CloudError for another status than expected."""
        version = self.microversion if microversion is None else microversion
        return self._ask("compute", verb, path, body, expected=expected, microversion=".".join(map(str, version)))

    def glance(
        self, verb: str, path: str, body: Any = None, *, expected: tuple[int, ...] = (OK,), content_type: str = "application/json"
    ) -> Any:
        """The JSON of Glance's answer, likewise."""
        return self._ask("image", verb, path, body, expected=expected, headers={"Content-Type": content_type})

    def server(self, server_id: str) -> dict[str, Any] | None:
        """A server as Nova shows it; None where there is none. Raises CloudError."""
        return self._one(lambda: self.nova("GET", f"/servers/{part(server_id)}")["server"], server_id)

    def flavor(self, flavor_id: str) -> dict[str, Any] | None:
        """A flavor with its extra specs, likewise."""
        found = self._one(lambda: self.nova("GET", f"/flavors/{part(flavor_id)}")["flavor"], flavor_id)
        if found is not None and not isinstance(found.get("extra_specs"), dict):
            specs = self._one(lambda: self.nova("GET", f"/flavors/{part(flavor_id)}/os-extra_specs")["extra_specs"])
            return None if specs is None else {**found, "extra_specs": specs}
        return found

    def image(self, image_id: str) -> dict[str, Any] | None:
        """An image as Glance shows it, likewise."""
        return self._one(lambda: self.glance("GET", f"/images/{part(image_id)}"), image_id)

    def _one(self, ask: Callable[[], Any], asked_for: str | None = None) -> dict[str, Any] | None:
        try:
            found = ask()
        except CloudError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        except (KeyError, TypeError) as error:
            raise CloudError(f"{self.told}: an answer without {error}") from error
        if not isinstance(found, dict):
            raise CloudError(f"{self.told}: expected a JSON object, found {type(found).__name__}")
        if asked_for is not None and str(found.get("id")).lower() != asked_for.lower():
            raise CloudError(f"{self.told}: asked for {asked_for!r}, found {str(found.get('id'))[:64]!r}")
        return found

    def _open(self, name: str) -> tuple[Any, str | None]:
        self._region = openstack.config.get_cloud_region(cloud=name or None, api_timeout=self._timeout_seconds, app_name="exitguard")
        compute = self._adapter("compute")
        return compute.get_endpoint_data(), compute.get_project_id()

    def _adapter(self, service: str) -> Any:
        if service not in self._adapters:
            region = self._region
            self._adapters[service] = adapter.Adapter(
                session=region.get_session(),
                service_type=region.get_service_type(service),
                service_name=region.get_service_name(service),
                interface=region.get_interface(service),
                region_name=region.get_region_name(service),
                endpoint_override=region.get_endpoint(service),
                min_version="2",
                max_version="2.latest",
            )
        return self._adapters[service]

    def _ask(self, service: str, verb: str, path: str, body: Any, *, expected: tuple[int, ...], **more: Any) -> Any:
        data = {} if body is None else {"data": json.dumps(body)}
        of_a_body = more.pop("headers", {})
        headers = {"Accept-Encoding": "identity"}  # what is not packed cannot unfold
        headers |= {"Content-Type": "application/json", **of_a_body} if body is not None else {}

        def ask() -> tuple[int, bytes]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = self._adapter(service).request(
                    path, verb, raise_exc=False, log=False, redirect=False, connect_retries=0, stream=True, headers=headers, **data, **more
                )
            with contextlib.closing(answer):
                return answer.status_code, answer.raw.read(_LIMIT_BYTES + 1, decode_content=False)

        try:
            status, content = within(self._timeout_seconds, ask)
        except TooLateError:
            raise CloudError(f"{verb} {path}: no whole answer within {self._timeout_seconds} seconds") from None
        except Exception as error:
            raise CloudError(f"{verb} {path}: {_first_line(error)}") from error
        if status not in expected:
            raise CloudError(f"{verb} {path}: {status}: {_words(content)}", status)
        if len(content) > _LIMIT_BYTES:
            raise CloudError(f"{verb} {path}: expected an answer of at most {_LIMIT_BYTES} bytes, found more")
        try:
            return json.loads(content) if content.strip() else None
        except (ValueError, RecursionError) as error:
            raise CloudError(f"{verb} {path}: the answer is no JSON") from error


def within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What `ask` returns or raises; TooLateError where it does neither in time.

    A server that sends a byte now and then is past every time-out of a socket. Who waits for it is a thread, which is left alone then.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=run, name="openstack", daemon=True).start()
    return outcome.result(seconds)


def part(text: str) -> str:
    """A part of a path: an id that a file or an API gave may hold anything. Raises CloudError for one that would lead elsewhere."""
    if text in ("", ".", ".."):
        raise CloudError(f"{text!r} is no id. Nothing was changed")
    return quote(text, safe="")


def cloud_id(endpoint: str, project: str | None) -> str:
    """A cloud by where its compute API is, whoever asks."""
    place = endpoint.rstrip("/")
    if project and place.endswith(f"/{project}"):
        place = place[: -len(project)].rstrip("/")
    return str(uuid.uuid5(uuid.NAMESPACE_URL, place))


def open_cloud(module: Any) -> Cloud:
    """The cloud of the module's options; the module fails where it is not the one that was planned for, or cannot be reached."""
    try:
        cloud = Cloud(module.params["cloud"], module.params["timeout_seconds"])
    except CloudError as error:
        module.fail_json(msg=f"{error}. Expected an entry of clouds.yaml, or OS_ variables, that lead to the cloud")
    planned = module.params["cloud_id"]
    if planned and planned != cloud.id:
        module.fail_json(
            msg=f"{cloud.told} is the cloud {cloud.id}, and this is for {planned}: clouds.yaml may have changed. Nothing was changed"
        )
    return cloud


def each_change(module: Any, key: str, change_one: Callable[[dict[str, Any]], tuple[str, str]]) -> None:
    """Make each change of the module's options, and end it with what became of them.

    `change_one` gives the reason and what was there before, and raises Ended where it is not done. Once more than `failure_budget` of
    them were refused or failed, no other is begun.
    """
    steps, before, after = [], [], []
    failures = 0
    for change in module.params["changes"]:
        subject, undo = change[key], None
        if failures > module.params["failure_budget"]:
            steps.append({"subject": subject, "outcome": REFUSED, "reason": "not begun, since others failed before it", "undo": None})
            continue
        try:
            reason, was = change_one(change)
            outcome, undo = DONE, {"element": was}
            before.append(f"{subject}: {was or '(silent)'}\n")
            after.append(f"{subject}: {change.get('after', 'false') or '(silent)'}\n")
        except Ended as ended:
            outcome, reason = ended.outcome, str(ended)
        except CloudError as error:
            outcome, reason = FAILED, str(error)
        except Exception as error:  # noqa: BLE001 - what became of the others has to be told
            outcome, reason = FAILED, f"found what was not expected: {type(error).__name__}: {_first_line(error)}"
        failures += outcome in (FAILED, REFUSED)
        steps.append({"subject": subject, "outcome": outcome, "reason": reason, "undo": undo})
    result: dict[str, Any] = {"changed": any(step["outcome"] == DONE for step in steps), "exitguard": {"steps": steps}}
    if module._diff:  # noqa: SLF001 - the only name that Ansible gives it
        result["diff"] = {"before": "".join(before), "after": "".join(after)}
    bad = [step for step in steps if step["outcome"] in (REFUSED, FAILED)]
    if bad:
        first = f"{bad[0]['subject']}: {bad[0]['outcome']}: {bad[0]['reason']}"
        module.fail_json(msg=first if len(bad) == 1 else f"{first}; and {len(bad) - 1} more", **result)
    module.exit_json(msg=f"{sum(step['outcome'] == DONE for step in steps)} of {len(steps)} changed", **result)


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a file as a whole, for nobody else's eyes, and onto the disk. Raises Ended."""
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Ended(REFUSED, f"{path} cannot be written: {error.strerror}") from None


def _words(content: bytes) -> str:
    """What an error says: Nova and Glance put it into `message`, or into HTML."""
    text = content.decode("utf-8", "replace")
    try:
        document = json.loads(text)
        for value in document.values() if isinstance(document, dict) else ():
            if isinstance(value, dict) and isinstance(value.get("message"), str):
                text = value["message"]
    except ValueError:
        pass
    return " ".join(text.split())[:_WORDS_CHARACTERS]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_WORDS_CHARACTERS].rstrip(".")
