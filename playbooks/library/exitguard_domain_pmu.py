#!/usr/bin/python
"""Ansible module exitguard_domain_pmu: sets <pmu> in persistent definitions of libvirt domains, and proves that nothing else changed."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: exitguard_domain_pmu
short_description: Set the PMU element of libvirt domains
description:
  - Sets C(<features><pmu/></features>) in the persistent definition of domains, and nothing else. What runs goes on undisturbed; a guest
    has the new setting from its next start on.
  - Each definition is read back. Where libvirt made more of it than the one change, the old one is put back and the task fails.
  - Never touched are domains that another manager owns (OpenStack Nova and whatever else leaves its metadata), those with the mark
    of exitguard's lock, those without a persistent definition, and those whose element is not what it was planned on.
  - No secret of a definition is printed, logged or returned.
options:
  changes:
    description: The changes, one for each domain at most.
    type: list
    elements: dict
    required: true
    suboptions:
      uuid:
        description: The domain.
        type: str
        required: true
      before:
        description: What the element says now. Where it says something else, the domain is left as it is (changed_since).
        type: str
        choices: ["on", "off", absent]
        required: true
      after:
        description: What it is to say.
        type: str
        choices: ["on", "off", absent]
        default: "off"
      restores:
        description: Of a change that restores an earlier definition - the fingerprint that the definition has to have afterwards.
        type: str
  uri:
    description: The libvirt.
    type: str
    default: qemu:///system
  timeout_seconds:
    description: How long to wait for the lock, for the connection, and for each domain. What libvirt has not answered by then is failed.
    type: int
    default: 60
  lock_file:
    description: Locked while definitions are changed, so that no two attempts run at once. Made if it is missing.
    type: path
    default: /run/exitguard/remedy.lock
requirements:
  - libvirt-python (python3-libvirt) in the Python that runs the module
attributes:
  check_mode:
    support: full
    description: Says what would be done, as far as it can be told without libvirt defining it.
  diff_mode:
    support: full
    description: Shows <features>, and nothing else of a definition.
author:
  - exitguard maintainers
"""

EXAMPLES = r"""
- name: Switch the PMU of a guest off, from its next start on
  exitguard_domain_pmu:
    changes: [{uuid: 813b0c1a-48cc-4074-9228-2fd0b7077ef5, before: absent, after: "off"}]
"""

RETURN = r"""
exitguard:
  description: What became of each change.
  returned: always, but for options that make no sense
  type: dict
  contains:
    steps:
      description:
        - For each change its C(subject), the uuid, its C(outcome), a C(reason) and C(undo).
        - Outcomes are C(done), C(already), C(changed_since) (not as planned, nothing changed), C(refused) (nothing changed) and C(failed).
        - C(undo) of what is as it is to be holds the C(element) from before, and fingerprints of the definition before and after.
      type: list
      elements: dict
"""

import contextlib
import queue
import signal
import sys
import threading
import uuid
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.exitguard_domain_xml import (
    ON,
    STATES,
    DomainXmlRefusedError,
    differs_only_in_pmu,
    features_diff,
    fingerprint,
    pmu_element,
    where_they_differ,
    why_not_ours,
    with_pmu,
)
from ansible.module_utils.exitguard_host_step import ALREADY, CHANGED_SINCE, DONE, FAILED, REFUSED, Ended, locked

try:
    import libvirt
except ImportError as import_error:
    libvirt = None
    WHY_NO_LIBVIRT = str(import_error)


class Work:
    """The changes, made one after another on a connection of their own, in a thread of their own: a call to libvirt can block for good.

    Who waits for the results may give the work up. Nothing is then defined any more that was not being defined already.
    """

    def __init__(self, uri: str, changes: list[dict[str, Any]], *, check: bool) -> None:
        self.uri = uri
        self.changes = changes
        self.check = check
        #: None once connected, then (step, diff) for each change, in their order.
        self.results: queue.Queue[Any] = queue.Queue()
        #: Set where no further change is to be begun: the process was asked to end.
        self.ending = threading.Event()
        self._fence = threading.Lock()
        self._given_up = False
        self._defining: str | None = None
        self.connection: Any = None

    def begin(self) -> None:
        threading.Thread(target=self._run, name="libvirt", daemon=True).start()

    def give_up(self) -> str | None:
        """The domain that is being defined at this moment, if any. Nothing more will be."""
        with self._fence:
            self._given_up = True
            return self._defining

    def _run(self) -> None:
        try:
            self.connection = libvirt.open(self.uri)
        except (libvirt.libvirtError, ValueError) as error:
            self.results.put(f"libvirt at {self.uri} does not answer: {words(error)}")
            return
        self.results.put(None)
        for change in self.changes:
            self.results.put(self._carry_out(change))
            with self._fence:
                self._defining = None

    def _carry_out(self, change: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The step of one change, and its diff."""
        try:
            return self._change(change)
        except Ended as ended:
            return step(change, ended.outcome, str(ended)), ""
        except (libvirt.libvirtError, DomainXmlRefusedError, UnicodeDecodeError) as error:
            reason = words(error)
        except Exception as error:  # noqa: BLE001 - the outer edge of a domain: without an answer the others would wait for it
            reason = f"{type(error).__name__} in the module itself: {words(error)}"
        if self._defining is None:
            return step(change, REFUSED, f"{reason}. Nothing was changed"), ""
        return step(change, FAILED, f"{reason}. Whether the change took effect was not seen: look before trying again"), ""

    def _change(self, change: dict[str, Any]) -> tuple[dict[str, Any], str]:
        if self.ending.is_set():
            raise Ended(REFUSED, "not tried: the process was asked to end. Nothing was changed")
        domain = self._look_up(change["uuid"])
        old = read(domain)
        shown = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        try:
            why_not(change, old, shown)
        except Ended as ended:
            if ended.outcome != ALREADY:
                raise
            # Whoever made the change may have been cut off before they heard of it: this is what they need to undo it.
            return step(change, ALREADY, str(ended), undo_of(change, with_pmu(shown, change["before"]), shown)), ""
        new = with_pmu(old, change["after"])
        if change["restores"] and fingerprint(with_pmu(shown, change["after"])) != change["restores"]:
            raise Ended(CHANGED_SINCE, "the definition was changed elsewhere since: with its PMU restored it would not be the earlier one")
        name = f"domain {change['uuid']}"
        if self.check:
            return step(change, DONE, "would be changed"), features_diff(old, new, name)
        now = self._define(domain, change, old, new)
        return step(change, DONE, "changed and read back: nothing else differs", undo_of(change, shown, now)), features_diff(old, now, name)

    def _look_up(self, subject: str) -> Any:
        try:
            domain = self.connection.lookupByUUIDString(subject)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise Ended(CHANGED_SINCE, "there is no such domain any more") from None
            raise
        if not domain.isPersistent():
            raise Ended(CHANGED_SINCE, "the domain is transient: it has no definition for a next start")
        return domain

    def _define(self, domain: Any, change: dict[str, Any], old: str, new: str) -> str:
        """Define `new` in place of `old`, and see that it is: the definition as it was read back. Raises Ended.

        Without VIR_DOMAIN_DEFINE_VALIDATE: libvirt took definitions in the past that its schema does not know.

        What remains: libvirt has no "define if it is still this one". Whoever changes or undefines the domain in the moment
        between this last look and the define loses that change, or sees the domain again. Such a moment is well below a millisecond;
        a change of another part after the define is found by the reading back, and the old definition then goes over it.
        """
        if read(domain) != old:
            raise Ended(CHANGED_SINCE, "the definition was changed elsewhere just now")
        with self._fence:
            if self._given_up:
                raise Ended(REFUSED, "given up. Nothing was changed")
            self._defining = change["uuid"]
        problem: str | None = None
        try:
            self.connection.defineXML(new)
        except libvirt.libvirtError as error:
            problem = f"libvirt refused the new definition: {words(error)}"
        now = read(domain)
        problem = problem or why_not_as_wanted(change, old, now)
        if not problem:
            return now
        if now == old:
            raise Ended(FAILED, f"{problem}. The definition is as it was")
        try:
            self.connection.defineXML(old)
        except libvirt.libvirtError as error:
            raise Ended(FAILED, f"{problem}. The old definition could NOT be put back: {words(error)}") from None
        again = read(domain)
        if differs_only_in_pmu(old, again) and pmu_element(old) == pmu_element(again):
            raise Ended(FAILED, f"{problem}. The old definition was put back, exactly")
        where = where_they_differ(old, again) or "domain/features/pmu"
        raise Ended(FAILED, f"{problem}. The old definition was put back, but NOT exactly: libvirt reads it as another in {where}")


def why_not(change: dict[str, Any], old: str, shown: str) -> None:
    """Raise Ended where this definition is not to be changed, or need not be."""
    stranger = why_not_ours(old)
    if stranger:
        raise Ended(REFUSED, f"{stranger}. Nothing was changed")
    element = pmu_element(old)
    if element == change["after"]:
        if change["restores"] and fingerprint(shown) != change["restores"]:
            raise Ended(CHANGED_SINCE, "the element is as it is to be, but the definition was changed elsewhere since")
        raise Ended(ALREADY, "the element is as it is to be")
    if element != change["before"]:
        raise Ended(CHANGED_SINCE, f"the element says {element}; the change was planned on {change['before']}")
    if element == ON and not change["restores"]:
        raise Ended(REFUSED, "the definition asks for the PMU by its own element: that is its owner's wish. Nothing was changed")


def why_not_as_wanted(change: dict[str, Any], old: str, now: str) -> str | None:
    """What is wrong with what libvirt made of the change."""
    if pmu_element(now) != change["after"]:
        return f"defined, but the element says {pmu_element(now)}"
    if not differs_only_in_pmu(old, now):
        return f"defined, but more than <pmu> differs, in {where_they_differ(old, now)}"
    if change["restores"] and fingerprint(now) != change["restores"]:
        return "defined, but it is not the definition that was to be restored"
    return None


def undo_of(change: dict[str, Any], before: str, after: str) -> dict[str, str]:
    """What an undo needs to know: no secret is in it."""
    return {"element": change["before"], "definition_before": fingerprint(before), "definition_after": fingerprint(after)}


def step(change: dict[str, Any], outcome: str, reason: str, undo: dict[str, str] | None = None) -> dict[str, Any]:
    return {"subject": change["uuid"], "outcome": outcome, "reason": reason, "undo": undo}


def read(domain: Any) -> str:
    """The definition for the next start, whole: without its secrets a define would lose them. It never leaves this process."""
    text: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    return text


def words(error: BaseException) -> str:
    """The first line of an error's message: libvirt may quote a definition in those after it."""
    line = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return "".join(character if character.isprintable() else "?" for character in line)  # it may quote a tenant's text


def carry_out(work: Work, timeout_seconds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The step of every change, whether libvirt answers or not, and the diffs."""
    work.begin()
    steps: list[dict[str, Any]] = []
    diffs: list[str] = []
    defining = None
    try:
        problem = work.results.get(timeout=timeout_seconds)
        while problem is None and len(steps) < len(work.changes):
            made, diff = work.results.get(timeout=timeout_seconds)
            steps.append(made)
            diffs.append(diff)
    except queue.Empty:
        problem = f"libvirt has not answered within {timeout_seconds} seconds"
        defining = work.give_up()
        with contextlib.suppress(queue.Empty):  # what came in this very moment: then the one being defined is a later one
            while len(steps) < len(work.changes):
                made, diff = work.results.get_nowait() or (None, "")
                steps += [made] if made else []
                diffs.append(diff)
        if len(steps) < len(work.changes) and defining == work.changes[len(steps)]["uuid"]:
            reason = f"{problem} while the definition was changed. It may still take effect: look before trying again"
            steps.append(step(work.changes[len(steps)], FAILED, reason))
    steps += [step(change, REFUSED, f"not tried: {problem}. Nothing was changed") for change in work.changes[len(steps) :]]
    return steps, [diff for diff in diffs if diff]


def why_senseless(changes: list[dict[str, Any]]) -> str | None:
    """What is wrong with the options beyond their types; uuids are put into their usual form."""
    for change in changes:
        try:
            change["uuid"] = str(uuid.UUID(change["uuid"]))
        except ValueError:
            return f"changes: {change['uuid'][:80]!r} is not a uuid; expected one like 813b0c1a-48cc-4074-9228-2fd0b7077ef5"
    subjects = [change["uuid"] for change in changes]
    repeated = sorted({subject for subject in subjects if subjects.count(subject) > 1})
    return f"changes: {repeated[0]} is named {subjects.count(repeated[0])} times; expected each domain once" if repeated else None


def main() -> None:
    options = {
        "uuid": {"type": "str", "required": True},
        "before": {"type": "str", "choices": list(STATES), "required": True},
        "after": {"type": "str", "choices": list(STATES), "default": "off"},
        "restores": {"type": "str"},
    }
    module = AnsibleModule(
        argument_spec={
            "changes": {"type": "list", "elements": "dict", "required": True, "options": options},
            "uri": {"type": "str", "default": "qemu:///system"},
            "timeout_seconds": {"type": "int", "default": 60},
            "lock_file": {"type": "path", "default": "/run/exitguard/remedy.lock"},
        },
        supports_check_mode=True,
    )
    changes = module.params["changes"]
    timeout_seconds = module.params["timeout_seconds"]
    senseless = why_senseless(changes)
    if timeout_seconds < 1:
        senseless = "timeout_seconds: expected at least 1"
    if senseless:
        module.fail_json(msg=senseless)
    if libvirt is None:
        refuse_all(
            module,
            f"libvirt-python is missing in {sys.executable} ({WHY_NO_LIBVIRT}): install python3-libvirt for it, or name a Python that has "
            "it by ansible_python_interpreter. Nothing was changed",
        )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # its default prints every error
    work = Work(module.params["uri"], changes, check=module.check_mode)
    # A domain that was begun is finished: killed between a define and its reading back, nobody would have seen what libvirt made of it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: work.ending.set())
    # Check mode makes no file, and reading needs no lock.
    try:
        with contextlib.nullcontext() if module.check_mode else locked(module.params["lock_file"], timeout_seconds):
            steps, diffs = carry_out(work, timeout_seconds)
    except Ended as not_locked:
        refuse_all(module, str(not_locked))
    else:
        tell(module, steps, diffs)


def refuse_all(module: Any, problem: str) -> None:
    tell(module, [step(change, REFUSED, problem) for change in module.params["changes"]], [])


def tell(module: Any, steps: list[dict[str, Any]], diffs: list[str]) -> None:
    """End the module with its result."""
    result: dict[str, Any] = {
        "changed": any(made["outcome"] == DONE for made in steps),
        "exitguard": {"steps": steps},
        "diff": [{"prepared": diff} for diff in diffs],
    }
    bad = [made for made in steps if made["outcome"] in (REFUSED, FAILED)]
    if bad:
        more = f"; and {len(bad) - 1} more" if len(bad) > 1 else ""
        module.fail_json(msg=f"{len(bad)} of {len(steps)} domains: {bad[0]['subject']}: {bad[0]['reason']}{more}", **result)
    counts = {outcome: sum(made["outcome"] == outcome for made in steps) for outcome in (DONE, ALREADY, CHANGED_SINCE)}
    module.exit_json(msg=", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "no changes", **result)


if __name__ == "__main__":
    main()
