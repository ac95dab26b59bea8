"""Since when each verdict has been what it is, and which have changed: pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from exitguard.model.finding import Finding, Subject, SubjectKind
from exitguard.model.history import Transition
from exitguard.store.sections import FINDING, Held, Key, finding_keys

_GONE = "no longer judged: the subject is gone, or the rule is"


def without_domains(held: Mapping[Key, Held]) -> dict[Key, Held]:
    """`held` without the findings about domains."""
    return {key: part for key, part in held.items() if not (key.kind == FINDING and key.subject_kind == SubjectKind.DOMAIN)}


def settle(findings: Iterable[Finding], held: Mapping[Key, Held], at: datetime) -> tuple[tuple[Finding, ...], tuple[Transition, ...]]:
    """`findings` of `at` with `since` of each filled, and what changed against `held`, what the store holds now of these subjects.

    A verdict that stays keeps its `since`, whatever its reason; one that changed, or came back, begins at `at`.
    """
    judged = tuple(findings)
    keys = finding_keys(judged)
    settled = []
    transitions = []
    for key, finding in zip(keys, judged, strict=True):
        before = held.get(key)
        if before is not None and before.verdict is finding.verdict:
            since = before.since
        else:
            since = at
            was = None if before is None else before.verdict
            transitions.append(
                Transition(rule=finding.rule, subject=finding.subject, before=was, now=finding.verdict, reason=finding.reason, at=at)
            )
        settled.append(finding.model_copy(update={"since": since}))
    present = set(keys)
    for key, part in held.items():
        if key.kind == FINDING and key not in present:
            subject = Subject(kind=SubjectKind(key.subject_kind), id=key.subject_id, name=part.subject_name)
            transitions.append(Transition(rule=key.rule, subject=subject, before=part.verdict, now=None, reason=_GONE, at=at))
    return tuple(settled), tuple(transitions)
