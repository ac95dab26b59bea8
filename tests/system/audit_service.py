"""exitguard-audit.service of a test machine, as its operator sees it: systemctl, the journal, `exitguard report`."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from machine import Machine

UNIT = "exitguard-audit.service"
CONFIG = "/etc/exitguard/config.yaml"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
STATE_DIR = "/var/lib/exitguard"
#: Near the shortest intervals that the settings allow.
SETTINGS = "audit_interval_seconds: 20\nsample_interval_seconds: 10\n"
#: No audit is due during a test: what is judged then was judged after an event.
EVENTS_ONLY = "audit_interval_seconds: 43200\nsample_interval_seconds: 3600\n"
#: 20 % of an emulated processor is 1 % of a real one. Every other limit of the unit stays as it is.
_EMULATED = "[Service]\nCPUQuota=\n"
_ALWAYS_THERE = "10-emulated-processors.conf"
_CLI_LIMIT_SECONDS = 240
_JOURNAL = f"journalctl --unit={UNIT} --quiet"


@dataclass(frozen=True)
class Entry:
    """One line of the unit's journal: of the daemon, or of systemd about it. `event` is what a line of the daemon's says."""

    pid: int
    priority: int
    message: str

    @property
    def event(self) -> dict[str, Any]:
        """The line's JSON; empty for a line that is none."""
        try:
            parsed = json.loads(self.message)
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    def says(self, event: str, fields: dict[str, Any]) -> bool:
        said = self.event
        return said.get("event") == event and all(said.get(name) == value for name, value in fields.items())


class AuditService:
    """The service in a machine where the package is installed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._settings = ""

    # --- systemd ----------------------------------------------------------------------------------------------------------------

    def enable(self) -> None:
        """What the README tells a newcomer to do, on processors that are emulated."""
        self.machine.write(f"{DROP_INS}/{_ALWAYS_THERE}", _EMULATED)
        self.configure(SETTINGS)
        self.machine.output(f"systemctl daemon-reload && systemctl enable --now {UNIT}", timeout=300)

    def restore(self) -> None:
        """The unit as it is shipped and with the tests' settings, running, whatever a test left behind."""
        drop_ins = self.machine.output(f"ls {DROP_INS}").split()
        settings_changed = self._settings != SETTINGS
        if settings_changed:
            self.configure(SETTINGS)
        if drop_ins != [_ALWAYS_THERE] or self["ActiveState"] != "active":
            self.machine.output(f"find {DROP_INS} -type f ! -name {_ALWAYS_THERE} -delete; systemctl daemon-reload")
            self.machine.run(f"systemctl reset-failed {UNIT}")
            self.restart()
        elif settings_changed:
            self.reload()

    def __getitem__(self, name: str) -> str:
        """A property of the unit, as `systemctl show` prints it."""
        return self.machine.output(f"systemctl show --value --property={name} {UNIT}").strip()

    @property
    def pid(self) -> int:
        return int(self["MainPID"])

    def restart(self) -> None:
        self.machine.output(f"systemctl restart {UNIT}", timeout=300)

    def reload(self) -> None:
        self.machine.output(f"systemctl reload {UNIT}", timeout=120)

    def drop_in(self, text: str) -> None:
        """What `systemctl edit` would write, for the next start."""
        self.machine.write(f"{DROP_INS}/50-test.conf", text)
        self.machine.output("systemctl daemon-reload")

    def configure(self, settings: str) -> None:
        self.machine.write(CONFIG, settings)
        self._settings = settings

    # --- the journal ------------------------------------------------------------------------------------------------------------

    def mark(self) -> str:
        """Here and now in the unit's journal: what is written later is after it."""
        # A cursor of the unit's own: journalctl would skip a line after one that its filter leaves out.
        shown = self.machine.output(f"journalctl --sync; {_JOURNAL} --lines=1 --show-cursor --output=cat || true")  # nothing yet: no mark
        return shown.rpartition("-- cursor: ")[2].strip()

    def entries(self, mark: str | None = None) -> list[Entry]:
        """The unit's lines after a mark; all of them without one."""
        after = f"--after-cursor={shlex.quote(mark)}" if mark else ""
        shown = self.machine.output(f"{_JOURNAL} --output=json --output-fields=MESSAGE,PRIORITY,_PID {after}")
        lines = [json.loads(line) for line in shown.splitlines()]
        return [Entry(int(line.get("_PID", 0)), int(line["PRIORITY"]), str(line["MESSAGE"])) for line in lines]

    def events(self, mark: str, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The daemon's events of that name and with these fields, after a mark."""
        return [entry.event for entry in self.entries(mark) if entry.says(event, fields)]

    def wait_for(self, mark: str, event: str, *, timeout: float = 300, **fields: Any) -> dict[str, Any]:
        """The first such event after a mark, as soon as there is one."""
        return self._wait_for_any(mark, [(event, fields)], timeout)

    def wait_for_chain(self, mark: str, uuid: str, chain: str, rule: str) -> None:
        """Return when the domain is judged so, whether after its own event or in an audit of everything that came before that.

        Such an audit tells of `rule` alone: the verdict that this state of the chain brings.
        """
        judged = ("domain.judged", {"domain": uuid, "chain": chain})
        self._wait_for_any(mark, [judged, ("finding", {"subject_id": uuid, "rule": rule})], 300)

    def _wait_for_any(self, mark: str, wanted: list[tuple[str, dict[str, Any]]], timeout: float) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def seen() -> bool:
            found.extend(entry.event for entry in self.entries(mark) if any(entry.says(*one) for one in wanted))
            return bool(found)

        told = " or ".join(f"{event} {fields or ''}".rstrip() for event, fields in wanted)
        self.machine.wait_until(f"the journal has {told}", seen, timeout=timeout)
        return found[0]

    def wait_for_audit(self, mark: str | None = None, **fields: Any) -> dict[str, Any]:
        """The first audit of the whole host that ends after a mark, or after now."""
        return self.wait_for(self.mark() if mark is None else mark, "audit.finished", **fields)

    # --- what it remembers ------------------------------------------------------------------------------------------------------

    def exitguard(self, words: str) -> Any:
        """The JSON that `exitguard WORDS --format json` prints to root."""
        result = self.machine.run(f"exitguard {words} --format json", timeout=_CLI_LIMIT_SECONDS)
        try:
            return json.loads(result.stdout)
        except ValueError:
            raise self.machine.failure(f"exitguard {words} ended with {result.returncode}: {result.stdout}{result.stderr}") from None

    def report(self) -> Any:
        return self.exitguard("report")

    def chain_state(self, name: str) -> str | None:
        """How the last report has this domain's chain; None where it has no such domain."""
        return next((domain["chain"]["state"] for domain in self.report()["domains"] if domain["name"] == name), None)

    def gaps(self, since: str) -> list[Any]:
        gaps: list[Any] = self.exitguard(f"report --since {since}")["gaps"]
        return gaps
