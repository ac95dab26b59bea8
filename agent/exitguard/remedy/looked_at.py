"""One host as planning looks at it: its facts, judged once, and what waits to be decided about it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from exitguard.audit.rules import Judged
from exitguard.model.canonical import record_hash
from exitguard.model.finding import Finding, Subject, SubjectKind
from exitguard.model.host import Cpu, HostFacts, MitigationClass
from exitguard.model.plan import Change, Disruption, LeftAlone, LeftAloneBecause, Remedy, SavingPerExit, Step, step_id
from exitguard.policy.remedies import Remedies
from exitguard.policy.schema import Rulebook, Waiver
from exitguard.policy.waiver import protects

#: What comes of one subject and one remedy: a step, a reason for none, or nothing to say.
Decision = Step | LeftAlone | None


@dataclass(frozen=True)
class LookedAt:
    """A judged host with its findings, waivers applied."""

    judged: Judged
    findings: tuple[Finding, ...]
    rulebook: Rulebook
    #: By the clock of whoever plans; the facts have the host's.
    planned_at: datetime

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
    def _waivers(self) -> tuple[Waiver, ...]:
        """Those for rules about domains that are in force by the host's clock or by that of whoever plans: either protects."""
        rules = {rule.id for rule in self.rulebook.policy.rules if rule.subject is SubjectKind.DOMAIN}
        times = (self.judged.facts.observed_at, self.planned_at)
        return tuple(
            waiver
            for waiver in self.rulebook.waivers
            if not rules.isdisjoint(waiver.rules) and any(waiver.created <= time < waiver.expires for time in times)
        )

    def is_waived(self, domain: Subject) -> bool:
        """Whether somebody answers for any failure of this domain: then it is left alone, failing just now or not."""
        hostname = self.facts.identity.hostname.value
        return any(protects(waiver, domain, host_id=self.host_id, hostname=hostname) for waiver in self._waivers)

    @cached_property
    def untouchable(self) -> tuple[str, ...]:
        """Names of the domains that nothing may change, not even for the host as a whole: locked, or waived."""
        domains = zip(self.judged.facts.domains, self.judged.domains, strict=True)
        return tuple(facts.name for facts, judgement in domains if facts.locked or self.is_waived(judgement.subject))

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
