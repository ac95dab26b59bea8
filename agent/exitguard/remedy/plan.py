"""A plan: what is to be changed on which hosts, in which order, and what is left alone and why. Pure; the time is an argument.

Hosts are planned one by one, so that the facts of a fleet need not be in memory at once; `assemble` makes one plan of them. What is not
clearly in scope is not touched: each refusal is a `LeftAlone` with its reason, never silence.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from exitguard.audit.judge import judge_facts
from exitguard.model.canonical import record_hash
from exitguard.model.documents import FactsDocument
from exitguard.model.finding import Finding, SubjectKind, Verdict
from exitguard.model.plan import LeftAlone, LeftAloneBecause, Pace, Plan, PlanInputs, PlannedHost, Remedy, Step, Wave
from exitguard.policy.remedies import Rollout
from exitguard.policy.schema import Check, Rule, Rulebook
from exitguard.remedy.domain_step import decide_domain
from exitguard.remedy.host_steps import decide_host
from exitguard.remedy.looked_at import Decision, LookedAt

_HOST_REMEDIES = frozenset({Remedy.KERNEL_GUARD, Remedy.QEMU_PMU_CAP, Remedy.KVM_ENABLE_PMU_OFF})
_NEW_HASH = ""


class PlanError(Exception):
    """Nothing can be planned from what was given; the message says why, and what to do."""


@dataclass(frozen=True)
class HostPlan:
    """What is to be done on one host, and what is left alone there."""

    host: PlannedHost
    steps: tuple[Step, ...]
    left_alone: tuple[LeftAlone, ...]


@dataclass(frozen=True)
class Origins:
    """The hashes of what a plan is made from, beside facts and rulebook."""

    playbooks: str
    inventory: str | None = None


def plan_host(facts: FactsDocument, rulebook: Rulebook, *, inventory_name: str | None = None, now: datetime | None = None) -> HostPlan:
    """What the policy's remedies would do on one host. Raises PlanError where a waiver of the rulebook is malformed.

    `now` is the time by the clock of whoever plans; without one, the time of the facts.
    """
    refuse_bad_waivers(rulebook)
    judged, findings, _ = judge_facts(facts, rulebook)
    looked = LookedAt(judged, findings, rulebook, now or facts.observed_at)
    identity = facts.host.identity
    host = PlannedHost(id=identity.id, hostname=identity.hostname.value, inventory_name=inventory_name, facts_hash=facts.host_hash)
    decisions = [each for each in _decisions(looked) if each is not None]
    if facts.host.maintenance is not None:
        decisions = [_in_maintenance(looked, each) if isinstance(each, Step) else each for each in decisions]
    return HostPlan(
        host,
        steps=tuple(each for each in decisions if isinstance(each, Step)),
        left_alone=tuple(each for each in decisions if isinstance(each, LeftAlone)),
    )


def assemble(hosts: Iterable[HostPlan], rulebook: Rulebook, origins: Origins, *, made_at: datetime) -> Plan:
    """One plan for all hosts. Raises PlanError for a host that is given twice, or none at all."""
    planned = sorted(hosts, key=lambda each: (each.host.hostname or "", each.host.id))
    if not planned:
        raise PlanError("there are no facts to plan with: name the files that playbooks/facts.yml brought home, or audit this host first")
    _refuse_repeats(planned)
    policy = rulebook.policy
    plan = Plan(
        made_at=made_at,
        hash=_NEW_HASH,
        mode=policy.remedies.mode,
        approval=policy.remedies.approval,
        inputs=PlanInputs(
            policy=f"{policy.id} {policy.version}",
            policy_hash=policy_hash(rulebook),
            waivers_hash=waivers_hash(rulebook),
            playbooks_hash=origins.playbooks,
            inventory_hash=origins.inventory,
            hosts=tuple(each.host for each in planned),
        ),
        pace=_pace([each.host for each in planned if each.steps], [each.host for each in planned], policy.remedies.rollout),
        steps=tuple(step for each in planned for step in each.steps),
        left_alone=tuple(left for each in planned for left in each.left_alone),
    )
    return plan.model_copy(update={"hash": record_hash(plan.content())})


def policy_hash(rulebook: Rulebook) -> str:
    """Of the policy, the kernels, the QEMU versions and the costs, as they were read: comments and layout are not in it."""
    return record_hash(rulebook.model_dump(mode="json", exclude={"waivers", "waiver_problems"}))


def waivers_hash(rulebook: Rulebook) -> str:
    """Of the waivers, in their order."""
    return record_hash([waiver.model_dump(mode="json") for waiver in rulebook.waivers])


def refuse_bad_waivers(rulebook: Rulebook) -> None:
    """Raises PlanError where a waiver could not be read: it may have been meant to protect somebody."""
    if rulebook.waiver_problems:
        first = rulebook.waiver_problems[0]
        raise PlanError(
            f"nothing is planned while a waiver is malformed, since it may have been meant to protect a guest: {first.where}: "
            f"{first.sentence}. `exitguard waiver check` shows all of them."
        )


def _decisions(looked: LookedAt) -> Iterator[Decision]:
    """One decision a subject and rule, in the order of the policy's rules; a subject that two rules send to one remedy is decided once."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in looked.findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    decided: set[tuple[str, Remedy]] = set()
    for rule in looked.rulebook.policy.rules:
        for decision in _of_rule(looked, rule, by_rule.get(rule.id, [])):
            if decision is None:
                continue
            key = (decision.subject.id, decision.remedy) if decision.remedy is not None else None
            if key is not None and key in decided:
                continue
            if key is not None:
                decided.add(key)
            yield decision


def _of_rule(looked: LookedAt, rule: Rule, findings: list[Finding]) -> Iterator[Decision]:
    if rule.remedy is None:
        if rule.check is Check.KERNEL_REBOOT:
            yield from (
                looked.leave(finding.subject, None, LeftAloneBecause.PENDING, f"{finding.reason}: no host is rebooted for this")
                for finding in findings
                if finding.verdict is Verdict.FAIL
            )
        return
    broken = [finding for finding in findings if finding.verdict is Verdict.ERROR]
    if broken:
        yield from (looked.leave(each.subject, rule.remedy, LeftAloneBecause.UNKNOWN, each.reason) for each in broken)
        return
    if rule.remedy is Remedy.DOMAIN_PMU_OFF and rule.subject is SubjectKind.DOMAIN:
        # A domain rule has one finding a domain, in the order of the domains (audit/rules.py).
        for domain, judgement, finding in zip(looked.judged.facts.domains, looked.judged.domains, findings, strict=True):
            yield _allowed(looked, decide_domain(looked, domain, judgement, finding))
    elif rule.remedy in _HOST_REMEDIES and rule.subject is SubjectKind.HOST:
        yield from (_allowed(looked, decide_host(looked, finding, rule.remedy)) for finding in findings)
    else:
        reason = f"this version has no playbook of {rule.remedy.value} for {rule.subject.value}s"
        yield from (
            looked.leave(finding.subject, rule.remedy, LeftAloneBecause.NO_REMEDY, reason)
            for finding in findings
            if finding.verdict is Verdict.FAIL
        )


def _allowed(looked: LookedAt, decision: Decision) -> Decision:
    """`decision`, but for a step that the policy does not allow."""
    if not isinstance(decision, Step) or decision.remedy in looked.remedies.allowed:
        return decision
    reason = f"{looked.rulebook.policy.id} does not allow {decision.remedy.value}: name it under remedies.allowed to have it planned"
    return looked.leave(decision.subject, decision.remedy, LeftAloneBecause.NOT_ALLOWED, reason)


def _in_maintenance(looked: LookedAt, step: Step) -> LeftAlone:
    reason = f"the host is in maintenance: {looked.facts.maintenance}"
    return looked.leave(step.subject, step.remedy, LeftAloneBecause.MAINTENANCE, reason)


def _refuse_repeats(planned: list[HostPlan]) -> None:
    by_id: dict[str, PlannedHost] = {}
    by_name: dict[str, PlannedHost] = {}
    for each in planned:
        other = by_id.setdefault(each.host.id, each.host)
        if other is not each.host:
            raise PlanError(
                f"two hosts have the host id {each.host.id}: {_told(other)} and {_told(each.host)}. Expected one file of facts a host. "
                "Where both are given on purpose, one was cloned from the other with its state directory: see HOST-IDENTITY."
            )
        if each.host.inventory_name is not None and by_name.setdefault(each.host.inventory_name, each.host) is not each.host:
            raise PlanError(f"two files give facts of the inventory's host {each.host.inventory_name}. Expected one a host.")


def _told(host: PlannedHost) -> str:
    return host.inventory_name or host.hostname or "a host without a name"


def _pace(hosts: list[PlannedHost], looked_at: list[PlannedHost], rollout: Rollout) -> Pace:
    return Pace(
        waves=tuple(_waves(hosts, looked_at, rollout)),
        max_hosts_in_flight=rollout.max_hosts_in_flight,
        failure_budget=rollout.failure_budget,
        step_timeout_seconds=rollout.step_timeout_seconds,
        pause_between_waves_seconds=rollout.pause_between_waves_seconds,
        automatic_rollback=rollout.automatic_rollback,
    )


def _waves(hosts: list[PlannedHost], looked_at: list[PlannedHost], rollout: Rollout) -> Iterator[Wave]:
    """The canary, then as many hosts as bring the whole to each percentage; hosts come in the order of their names."""
    if not hosts:
        return
    alone = all(host.inventory_name is None for host in hosts)  # the machine itself: no other host could go first
    named = set() if alone else set(rollout.canary)
    first = [host for host in hosts if named & {host.id, host.hostname, host.inventory_name}] if named else hosts[:1]
    if not first and named & {name for host in looked_at for name in (host.id, host.hostname, host.inventory_name)}:
        first = hosts[:1]  # the canary is done already, or has nothing to do: then another one goes first
    if not first:
        raise PlanError(
            f"none of the canary hosts {', '.join(rollout.canary[:5])} is among these hosts: a rollout without its canary is none. Choose "
            "others under remedies.rollout.canary of the policy, or leave the key out for the first host by name."
        )
    yield Wave(name="canary", hosts=tuple(host.id for host in first))
    chosen = {host.id for host in first}
    rest = iter([host for host in hosts if host.id not in chosen])
    done = len(first)
    for percentage in rollout.percentages:
        wave = tuple(host.id for host in islice(rest, max(0, -(-len(hosts) * percentage // 100) - done)))
        done += len(wave)
        if wave:
            yield Wave(name=f"{percentage} %", hosts=wave)
