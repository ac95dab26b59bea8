"""The real command line, on a host whose kernel and KVM are recorded ones: a program of its own, so that it can be killed.

    python remedy_process.py [--guarded] [--die-after N] VERB...

Everything else is real: libvirt and its domains, the policy, Ansible, the journal. With --die-after the process kills itself with SIGKILL
right after the Nth line of the run's journal is on the disk.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import recorded_hosts

import exitguard.act.here
import exitguard.act.observe
from exitguard.cli.edge import run
from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import Observation
from exitguard.store.journal import RunJournal


def main(arguments: list[str]) -> int:
    """One command line; its exit code."""
    guarded = "--guarded" in arguments
    if guarded:
        arguments.remove("--guarded")
    if "--die-after" in arguments:
        at = arguments.index("--die-after")
        _die_after(int(arguments[at + 1]))
        del arguments[at : at + 2]

    def observed(request: AuditRequest) -> Observation:
        observation = observe(request)
        return observation.model_copy(update={"facts": recorded_hosts.on_debian_12(observation.facts, guard=guarded)})

    exitguard.act.here.observe = observed  # type: ignore[attr-defined]
    exitguard.act.observe.observe = observed  # type: ignore[attr-defined]
    return run(arguments)


def _die_after(lines: int) -> None:
    append = RunJournal.append
    written = 0

    def appended(self: RunJournal, *positional: Any, **fields: Any) -> Any:
        nonlocal written
        event = append(self, *positional, **fields)
        written += 1
        if written == lines:
            os.kill(os.getpid(), signal.SIGKILL)
        return event

    RunJournal.append = appended  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
