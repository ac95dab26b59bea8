"""Since when each verdict has been what it is, and which have changed: pure."""

from collections.abc import Mapping

from exitguard.model.documents import AuditReport
from exitguard.model.finding import Subject, SubjectKind
from exitguard.model.history import Transition
from exitguard.store.sections import FINDING, Held, Key, finding_keys

_GONE = "no longer judged: the subject is gone, or the rule is"


def settle(report: AuditReport, held: Mapping[Key, Held]) -> tuple[AuditReport, tuple[Transition, ...]]:
    """`report` with `since` of each finding filled, and what changed against `held`, what the store holds now.

    A verdict that stays keeps its `since`, whatever its reason; one that changed, or came back, begins with this report.
    """
    keys = finding_keys(report.findings)
    findings = []
    transitions = []
    for key, finding in zip(keys, report.findings, strict=True):
        before = held.get(key)
        if before is not None and before.verdict is finding.verdict:
            since = before.since
        else:
            since = report.observed_at
            transitions.append(
                Transition(
                    rule=finding.rule,
                    subject=finding.subject,
                    before=None if before is None else before.verdict,
                    now=finding.verdict,
                    reason=finding.reason,
                    at=report.observed_at,
                )
            )
        findings.append(finding.model_copy(update={"since": since}))
    present = set(keys)
    for key, part in held.items():
        if key.kind == FINDING and key not in present:
            subject = Subject(kind=SubjectKind(key.subject_kind), id=key.subject_id, name=part.subject_name)
            transitions.append(
                Transition(rule=key.rule, subject=subject, before=part.verdict, now=None, reason=_GONE, at=report.observed_at)
            )
    return report.model_copy(update={"findings": tuple(findings)}), tuple(transitions)
