"""What one fresh look says of the steps that were planned for whom it looked at: a host by its facts, or a cloud by its API. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from exitguard.model.cloud import CloudFacts
from exitguard.model.documents import FactsDocument
from exitguard.model.plan import Step
from exitguard.model.pmu import Tri
from exitguard.policy.schema import Rulebook
from exitguard.remedy import cloud_again, in_cloud, in_force
from exitguard.remedy.in_force import StillTrue


class Sight(Protocol):
    """One fresh look."""

    @property
    def uri(self) -> str | None:
        """The libvirt that was looked at; None for a cloud."""

    def still_true(self, steps: tuple[Step, ...], rulebook: Rulebook, *, undo: bool, now: datetime) -> StillTrue:
        """Which of the steps are still what this look calls for."""

    def in_force(self, step: Step) -> Tri:
        """Whether what the step wanted is so; unknown where this look does not show it."""

    def why_blind(self, steps: tuple[Step, ...]) -> str | None:
        """Why this look says nothing of what the steps are about; None where it does."""

    def running(self) -> tuple[str, ...]:
        """The uuids of the guests that run, and that nothing here may end."""

    def why_not_alive(self, before: tuple[str, ...]) -> str | None:
        """Which guests that ran before do not run any more; None where all do."""


@dataclass(frozen=True)
class HostSight:
    """A host, by facts that its own agent gathered."""

    facts: FactsDocument

    @property
    def uri(self) -> str | None:
        return self.facts.host.target.uri

    def still_true(self, steps: tuple[Step, ...], rulebook: Rulebook, *, undo: bool, now: datetime) -> StillTrue:
        return in_force.still_true(steps, self.facts, rulebook, undo=undo, now=now)

    def in_force(self, step: Step) -> Tri:
        return in_force.in_force(step, self.facts)

    def why_blind(self, steps: tuple[Step, ...]) -> str | None:
        return in_force.why_blind(steps, self.facts)

    def running(self) -> tuple[str, ...]:
        return in_force.running(self.facts)

    def why_not_alive(self, before: tuple[str, ...]) -> str | None:
        return in_force.why_not_alive(before, self.facts)


@dataclass(frozen=True)
class CloudSight:
    """A cloud, by its API. Its guests are their owners' to start and stop at any time, so none is expected to go on."""

    facts: CloudFacts

    @property
    def uri(self) -> str | None:
        return None

    def still_true(self, steps: tuple[Step, ...], rulebook: Rulebook, *, undo: bool, now: datetime) -> StillTrue:
        return cloud_again.still_true(steps, self.facts, rulebook, undo=undo, now=now)

    def in_force(self, step: Step) -> Tri:
        return in_cloud.in_force(step, self.facts)

    def why_blind(self, steps: tuple[Step, ...]) -> str | None:
        return in_cloud.why_blind(steps, self.facts)

    def running(self) -> tuple[str, ...]:
        return ()

    def why_not_alive(self, before: tuple[str, ...]) -> str | None:
        del before
        return None
