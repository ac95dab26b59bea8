"""Saying that there is something to do: a file that systemd watches, so that the privileged unit looks for itself.

No plan and no command crosses that line: the unit (exitguard-remedy.service) never reads the file. It observes anew as root, plans by the
policy in /etc, and does what policy and approvals allow. What stands in the file is for people.
"""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from exitguard.model.documents import FactsDocument
from exitguard.model.plan import Mode
from exitguard.model.time import format_rfc3339
from exitguard.policy.schema import Rulebook
from exitguard.remedy.plan import PlanError, plan_host

PROPOSAL_NAME = "proposal"
#: The same steps are proposed again after this: an approval may have come, or a window may have opened.
_AGAIN = timedelta(hours=1)
_MODE = 0o640


@dataclass
class Proposals:
    """What was proposed last. `consider` after each audit of the whole host."""

    _steps: frozenset[str] = frozenset()
    _at: datetime | None = None

    def consider(self, facts: FactsDocument, rulebook: Rulebook, state_dir: Path, now: datetime) -> int | None:
        """Propose where there is something new to do; the number of steps, or None where nothing was written. Raises OSError."""
        if rulebook.policy.remedies.mode is Mode.REPORT:
            return None
        try:
            steps = frozenset(step.id for step in plan_host(facts, rulebook).steps)
        except PlanError:  # a malformed waiver: the audit reports it as what it is
            return None
        if not steps:
            self._steps, self._at = steps, None
            return None
        if steps == self._steps and self._at is not None and now - self._at < _AGAIN:
            return None
        _write(state_dir / PROPOSAL_NAME, f"{format_rfc3339(now)} {len(steps)} steps are due on this host: `exitguard plan` shows them\n")
        self._steps, self._at = steps, now
        return len(steps)


def _write(path: Path, text: str) -> None:
    """In place: the unit's watch is on this very file, and a half written line harms nobody."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
