"""What changed in a fleet since a time, as its hub heard of it."""

from datetime import datetime
from typing import TYPE_CHECKING

from exitguard.cli.fleet import hosts_of
from exitguard.model.finding import Subject
from exitguard.model.history import Gap, Transition
from exitguard.model.hub import EventPage, FindingEvent, GapPage, HubGap
from exitguard.model.time import format_rfc3339
from exitguard.report.changes import Changes

if TYPE_CHECKING:
    from exitguard.fleet.operator import HubOperator

_A_PAGE = "1000"
#: More lines than this are no report: whoever wants them asks for a shorter time.
_MOST_EVENTS = 1_000_000


def fleet_changes(hub: "HubOperator", since: datetime) -> tuple[Changes, bool]:
    """The changes, and whether that is all of them. Raises HubError."""
    names = {host.host_id: host.hostname or host.host_id for host in hosts_of(hub)}
    query = {"since": format_rfc3339(since), "limit": _A_PAGE}
    events: list[FindingEvent] = []
    after: str | None = None
    while len(events) < _MOST_EVENTS:
        page = hub.get("/v1/events", EventPage, query if after is None else {**query, "after": after})
        events += page.events
        after = page.after
        if after is None:
            break
    lost: list[HubGap] = []
    more: str | None = None
    while len(lost) < _MOST_EVENTS:
        gaps = hub.get("/v1/gaps", GapPage, query if more is None else {**query, "after": more})
        lost += gaps.gaps
        more = gaps.after
        if more is None:
            break
    changes = Changes(
        since=since,
        transitions=tuple(_transition(each, names.get(each.host_id, each.host_id)) for each in events),
        gaps=tuple(_gap(each, names.get(each.host_id, each.host_id)) for each in lost),
    )
    return changes, after is None and more is None


def _gap(gap: HubGap, host: str) -> Gap:
    return Gap(id=gap.gap_id, first_at=gap.first_at, last_at=gap.last_at, dropped=gap.dropped, reason=f"{host}: {gap.reason}")


def _transition(event: FindingEvent, host: str) -> Transition:
    """Its subject says where it is: many hosts are told together."""
    own = event.subject_id == event.host_id
    name = event.subject_name if own else f"{event.subject_name or event.subject_id} on {host}"
    subject = Subject(kind=event.subject_kind, id=event.subject_id, name=name)
    return Transition(rule=event.rule, subject=subject, before=event.before, now=event.now, reason=event.reason, at=event.observed_at)
