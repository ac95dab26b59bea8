"""Audits as the tests run them: in this process, or by the real command line."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitguard.cycle import AuditRequest, observe
from exitguard.model.documents import AuditReport, DomainReport, FactsDocument
from exitguard.model.domain import DomainFacts
from exitguard.resources import policies_dir

#: Far above what a healthy libvirt takes, far below what a test may take.
CALL_TIMEOUT_SECONDS = 10.0
_LIMIT_SECONDS = 120


@dataclass(frozen=True)
class CommandResult:
    """What one run of the command line gave."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON on stdout."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def domains(self) -> dict[str, dict[str, Any]]:
        return {domain["uuid"]: domain for domain in self.document["domains"]}


def audit_command(*options: str | Path, verb: str = "audit") -> list[str]:
    return [sys.executable, "-m", "exitguard", verb, *map(str, options)]


def command_environment(home: Path) -> dict[str, str]:
    """Nothing of the machine's own settings or state."""
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.yaml"
    config.write_text("")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "EXITGUARD_CONFIG": str(config),
        "EXITGUARD_STATE_DIR": str(home / "state"),
        "PYTHONWARNINGS": "error",
    }


def run_command(home: Path, *options: str | Path, prefix: Sequence[str] = ()) -> CommandResult:
    """`exitguard audit OPTIONS...` to its end, `prefix` before it. Whatever it says, it never shows a traceback."""
    result = subprocess.run(
        [*prefix, *audit_command(*options)],
        env=command_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert "Traceback" not in result.stdout
    return CommandResult(result.returncode, result.stdout, result.stderr)


def observe_uri(uri: str, *, call_timeout_seconds: float = CALL_TIMEOUT_SECONDS) -> FactsDocument:
    """Facts of this machine with the domains of the libvirt at `uri`."""
    return observe(AuditRequest(uri=uri, call_timeout_seconds=call_timeout_seconds)).facts


def domain_facts(facts: FactsDocument, name: str) -> DomainFacts:
    found = [domain for domain in facts.domains if domain.name == name]
    assert len(found) == 1, f"{name}: {len(found)} domains of that name"
    return found[0]


def domain_report(report: AuditReport, name: str) -> DomainReport:
    found = [domain for domain in report.domains if domain.name == name]
    assert len(found) == 1, f"{name}: {len(found)} domains of that name"
    return found[0]


def admit_tcg(folder: Path) -> Path:
    """A copy of the shipped policy that is about TCG guests too."""
    shipped = (policies_dir() / "pmu-off.yaml").read_text()
    path = folder / "pmu-off-tcg.yaml"
    path.write_text(f"{shipped}\nscope:\n  admit_tcg: true\n")
    return path
