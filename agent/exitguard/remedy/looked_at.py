"""One host as planning looks at it: its facts, judged once, and what waits to be decided about it. Pure."""

from dataclasses import dataclass
from functools import cached_property

from exitguard.audit.rules import Judged
from exitguard.model.canonical import record_hash
from exitguard.model.finding import Finding, Subject, Verdict
from exitguard.model.host import Cpu, HostFacts, MitigationClass
from exitguard.model.plan import Change, Disruption, LeftAlone, LeftAloneBecause, Remedy, SavingPerExit, Step, step_id
from exitguard.policy.schema import Remedies, Rulebook

#: What comes of one subject and one remedy: a step, a reason for none, or nothing to say.
Decision = Step | LeftAlone | None


@dataclass(frozen=True)
class LookedAt:
    """A judged host with its findings, waivers applied."""

    judged: Judged
    findings: tuple[Finding, ...]
    rulebook: Rulebook

    @property
    def facts(self) -> HostFacts:
        return self.judged.facts.host

    @property
    def host_id(self) -> str:
        return self.facts.identity.id

    @property
    def remedies(self) -> Remedies:
        return self.rulebook.policy.remedies

    @property
    def cpu(self) -> Cpu | None:
        return self.facts.cpu.value

    @property
    def mitigation_classes(self) -> tuple[MitigationClass, ...] | None:
        return self.facts.mitigations.value.classes if self.facts.mitigations.value is not None else None

    @cached_property
    def waived(self) -> frozenset[str]:
        """Ids of the subjects of which any failure is waived: whoever answered for one wants them left alone."""
        return frozenset(finding.subject.id for finding in self.findings if finding.verdict is Verdict.WAIVED)

    def leave(self, subject: Subject, remedy: Remedy | None, because: LeftAloneBecause, reason: str) -> LeftAlone:
        return LeftAlone(host_id=self.host_id, subject=subject, remedy=remedy, because=because, reason=reason)

    def step(  # one argument a field of the step
        self,
        subject: Subject,
        change: Change,
        *,
        basis: object,
        why: str,
        safe: tuple[str, ...],
        takes_effect: str,
        guest_loses: tuple[str, ...],
        diff: str,
        savings: tuple[SavingPerExit, ...],
        reversible: bool,
    ) -> Step:
        """A step about `subject`. `basis` is what it rests on, as JSON."""
        rests_on = record_hash(basis)  # type: ignore[arg-type]  # canonical_json refuses what is no JSON
        return Step(
            id=step_id(self.host_id, change, rests_on),
            host_id=self.host_id,
            subject=subject,
            change=change,
            basis=rests_on,
            why=why,
            safe=safe,
            disruption=Disruption.NONE,
            takes_effect=takes_effect,
            guest_loses=guest_loses,
            diff=diff,
            savings=savings,
            reversible=reversible,
        )
