"""exitguard-remedy.service of a test machine, and what it leaves: plans, approvals, runs."""

import json
from dataclasses import dataclass
from typing import Any

from machine import Machine

UNIT = "exitguard-remedy.service"
PATH_UNIT = "exitguard-remedy.path"
REMEDY_DIR = "/var/lib/exitguard-remedy"
MAINTENANCE = "/etc/exitguard/maintenance"
_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """How one start of the unit ended, and what it said."""

    state: str
    result: str
    code: int
    said: str


class RemedyUnit:
    """The privileged unit in a machine where the package is installed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._seen = ""

    def watch(self) -> None:
        """What docs/operations.md tells an operator to enable."""
        self.machine.output(f"systemctl enable --now {PATH_UNIT}")

    def restore(self) -> None:
        """As the package leaves it, whatever a test left behind."""
        self.machine.run(
            f"systemctl disable --now {PATH_UNIT}; systemctl stop {UNIT}; systemctl reset-failed '{PATH_UNIT}' {UNIT}", timeout=400
        )
        self.machine.output(f"rm -rf {REMEDY_DIR} {MAINTENANCE} /run/exitguard && systemd-tmpfiles --create exitguard.conf")

    def shown(self, *names: str) -> dict[str, str]:
        """Properties of the unit, as `systemctl show` prints them."""
        lines = self.machine.output(f"systemctl show --property={','.join(names)} {UNIT}").splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def start(self) -> Ended:
        """What an operator types, and what came of it."""
        self.machine.run(f"systemctl start --wait {UNIT}", timeout=_LIMIT_SECONDS)
        return self.wait_for_end()

    def wait_for_start(self) -> int:
        """The process of a start that nobody has asked about yet, as soon as it runs."""
        found: list[int] = []

        def runs() -> bool:
            shown = self.shown("InvocationID", "ActiveState", "MainPID")
            if shown["InvocationID"] != self._seen and shown["ActiveState"] == "active":
                found.append(int(shown["MainPID"]))
            return bool(found)

        self.machine.wait_until(f"{UNIT} is started", runs)
        return found[0]

    def wait_for_end(self) -> Ended:
        """How the first start that nobody has asked about yet ended, as soon as it has."""

        def ended() -> bool:
            shown = self.shown("InvocationID", "ActiveState")
            return shown["InvocationID"] not in {"", self._seen} and shown["ActiveState"] in {"inactive", "failed"}

        self.machine.wait_until(f"{UNIT} was started and has ended", ended, timeout=_LIMIT_SECONDS)
        shown = self.shown("InvocationID", "ActiveState", "Result", "ExecMainStatus")
        self._seen = shown["InvocationID"]
        said = self.machine.output(f"journalctl --sync; journalctl --quiet --output=cat _SYSTEMD_INVOCATION_ID={self._seen}")
        return Ended(shown["ActiveState"], shown["Result"], int(shown["ExecMainStatus"]), said)

    # --- what it leaves ---------------------------------------------------------------------------------------------------------

    def files(self, folder: str) -> list[str]:
        """The names of the files, or for `runs` of the runs, below one of its folders."""
        kind = "d" if folder == "runs" else "f"
        return sorted(self.machine.output(f"find {REMEDY_DIR}/{folder} -mindepth 1 -maxdepth 1 -type {kind} -printf '%f\\n'").split())

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """A run's journal."""
        lines = [json.loads(line) for line in self.machine.output(f"cat {REMEDY_DIR}/runs/{run_id}/journal.jsonl").splitlines()]
        return [line["event"] for line in lines if "event" in line]
