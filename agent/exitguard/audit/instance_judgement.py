"""One instance judged: its report, with the evidence, and what its rules need beside it. Pure.

Instances of equal circumstances share their sentences and their evidence: they are many, and the circumstances are few.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from exitguard.audit.computes import Computes, Default
from exitguard.audit.instance import Conclusion, Known, conclude, pmu_verdict, setting_after, survives
from exitguard.audit.instance_domain import SHELVED_OFFLOADED, Found
from exitguard.audit.instance_known import Records, Texts, known_of
from exitguard.audit.instance_reasons import flavor_text, image_text, why_origin, why_survives, why_unsettled
from exitguard.model.cloud import Flavor, Server
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Subject, SubjectKind, Verdict
from exitguard.model.instance import InstanceReport
from exitguard.model.pmu import ChainState, PmuSetting, Tri
from exitguard.model.time import format_rfc3339

_REPORT_FIELDS = set(InstanceReport.model_fields)
_SUBJECT_FIELDS = set(Subject.model_fields)
_DELETED = frozenset({"DELETED", "SOFT_DELETED"})


class Told(NamedTuple):
    """What is concluded, and in which words; shared by all instances of which the same is known."""

    conclusion: Conclusion
    origin_reason: str
    next_setting: PmuSetting
    survives: Tri
    survives_reason: str
    #: Why it cannot be told what the next start will have; "" where it can.
    unsettled: str
    pmu_verdict: Verdict
    flavor_hw_pmu: str | None
    image_hw_pmu: str | None


class Instance(NamedTuple):
    """One instance as its rules look at it."""

    report: InstanceReport
    subject: Subject
    told: Told
    known: Known
    texts: Texts
    found: Found
    #: Why the rules about the PMU do not apply to it at all; None where they do.
    outside: str | None
    #: The flavor that has its flavor's name today; None where there is none, or none was shown.
    flavor_today: Flavor | None


@dataclass
class InstanceJudge:
    """Judges the instances of one cloud, one after another."""

    records: Records
    computes: Computes
    defaults: Mapping[str, Default]
    _told: dict[tuple[Known, Texts, PmuSetting, PmuSetting, str], Told] = field(default_factory=dict)
    _evidence: dict[tuple[tuple[str, str, datetime], ...], tuple[Evidence, ...]] = field(default_factory=dict)
    _flavors: dict[str, Flavor] = field(init=False)

    def __post_init__(self) -> None:
        self._flavors = {flavor.name: flavor for flavor in self.records.cloud.flavors.value or ()}

    def judge(self, server: Server, found: Found) -> Instance:
        """One instance, by all that is known of it."""
        default = self._default(server, found)
        known, texts = known_of(server, found, default.holds if default is not None else Tri.UNKNOWN, self.records)
        domain = found.domain
        none = PmuSetting.NONE if server.status == SHELVED_OFFLOADED else PmuSetting.UNKNOWN
        persistent = domain.persistent if domain is not None else none
        told = self._tell(known, texts, domain.absent_means if domain is not None else PmuSetting.UNKNOWN, persistent, found.note)
        # The values are what they are declared to be: they are not checked again, and all share the set of the fields' names.
        report = InstanceReport.model_construct(
            _REPORT_FIELDS,
            uuid=server.uuid,
            name=server.name,
            project=server.project,
            status=server.status,
            locked=True if domain is not None and domain.locked else server.locked,
            flavor=server.flavor,
            image=server.image,
            zone=server.zone,
            host=server.host,
            host_id=found.side.host_id if found.side is not None else None,
            build=domain.build if domain is not None else None,
            flavor_hw_pmu=told.flavor_hw_pmu,
            image_hw_pmu=told.image_hw_pmu,
            persistent=persistent,
            live=domain.live if domain is not None else none,
            chain=domain.chain if domain is not None else None,
            origin=told.conclusion.origin,
            origin_reason=told.origin_reason,
            next_element=told.conclusion.next_element,
            next_setting=told.next_setting,
            survives=told.survives,
            survives_reason=told.survives_reason,
            evidence=self._evidence_of(server, found, texts, default),
        )
        subject = Subject.model_construct(_SUBJECT_FIELDS, kind=SubjectKind.INSTANCE, id=server.uuid, name=server.name)
        return Instance(report, subject, told, known, texts, found, self._outside(server, found), self._flavors.get(server.flavor))

    def _default(self, server: Server, found: Found) -> Default | None:
        """Of its compute host: the one that Nova names, or the one that has its domain."""
        host = server.host
        if host is None and found.side is not None:
            host = self.computes.host_of_side.get(found.side.host_id)
        return self.defaults.get(host) if host is not None else None

    def _outside(self, server: Server, found: Found) -> str | None:
        if server.status in _DELETED:
            return "it is deleted: it has no next start"
        compute = self.computes.by_host.get(server.host) if server.host is not None else None
        if compute is not None and compute.qemu is False:
            return "its hypervisor is no QEMU"
        if found.domain is not None and found.domain.chain is ChainState.NOT_APPLICABLE:
            return "the policy is not about guests of its kind: it is emulated, or no x86 guest of KVM"
        return None

    def _tell(self, known: Known, texts: Texts, absent_means: PmuSetting, persistent: PmuSetting, note: str) -> Told:
        key = (known, texts, absent_means, persistent, note)
        told = self._told.get(key)
        if told is None:
            told = self._told[key] = _tell(known, texts, absent_means, persistent, note)
        return told

    def _evidence_of(self, server: Server, found: Found, texts: Texts, default: Default | None) -> tuple[Evidence, ...]:
        now = self.records.cloud.observed_at
        rows = [*_rows_of_cloud(server, self._flavors.get(server.flavor), self.records), *_rows_of_host(found, now)]
        if default is not None and texts.flavor == "":
            rows.append(("Nova's default on its compute host", default.reason, now))
        key = tuple(rows)
        shared = self._evidence.get(key)
        if shared is None:
            shared = tuple(Evidence(source=source, value=value, observed_at=when) for source, value, when in key)
            self._evidence[key] = shared
        return shared


def _tell(known: Known, texts: Texts, absent_means: PmuSetting, persistent: PmuSetting, note: str) -> Told:
    conclusion = conclude(known)
    next_setting = setting_after(conclusion.next_element, absent_means)
    answer = survives(conclusion, persistent, absent_means)
    unsettled = why_unsettled(conclusion, texts, absent_means)
    return Told(
        conclusion=conclusion,
        origin_reason=why_origin(conclusion, known, texts),
        next_setting=next_setting,
        survives=answer,
        survives_reason=why_survives(answer, conclusion, (persistent, next_setting), note=note, open_reason=unsettled),
        unsettled=unsettled,
        pmu_verdict=pmu_verdict(conclusion, absent_means),
        flavor_hw_pmu=flavor_text(conclusion, texts),
        image_hw_pmu=image_text(conclusion, texts),
    )


_Row = tuple[str, str, datetime]


def _rows_of_cloud(server: Server, today: Flavor | None, records: Records) -> Iterator[_Row]:
    """What was seen of an instance through the API, one line each: source, value, time."""
    now = records.cloud.observed_at
    yield "Nova: embedded flavor", f"{server.flavor}: hw:pmu {_said(server.flavor_hw_pmu)}", now
    if today is not None and today.hw_pmu != server.flavor_hw_pmu:
        yield "Nova: flavor of that name today", f"{today.name}: hw:pmu {_said(today.hw_pmu)}", now
    yield "Nova: stored image properties", f"hw_pmu {_said(server.image_hw_pmu)}", now
    record = records.of(server)
    if record is not None:
        yield "nova_instance_pmu_off", f"set hw_pmu={record.hw_pmu} at {format_rfc3339(record.set_at)}; a rebuild since would drop it", now
    image = records.cloud.images_by_id.get(server.image) if server.image is not None else None
    if image is not None and server.image_hw_pmu is None:
        changed = f"last changed {image.updated_at or image.created_at or 'at a time not shown'}"
        yield "Glance: its image today", f"hw_pmu {_said(image.hw_pmu)}, {changed}; nova-manage may have changed the instance's copy", now


def _rows_of_host(found: Found, now: datetime) -> Iterator[_Row]:
    """What was seen of its domain, likewise."""
    if found.note:
        yield "facts of hosts", found.note, now
    domain = found.domain
    if domain is None or found.side is None:
        return
    when = found.side.observed_at
    if domain.flavor_hw_pmu is not None or domain.image_hw_pmu is not None:
        value = f"flavor hw:pmu {_said(domain.flavor_hw_pmu)}, image hw_pmu {_said(domain.image_hw_pmu)}"
        yield "libvirt: Nova's metadata", value, when
    if domain.wrote is not None:
        yield "libvirt: live XML as Nova wrote it", f"Nova {domain.build}: pmu {domain.wrote}", when
    elif domain.runs_with is not None:
        yield "libvirt: live XML", f"pmu {domain.runs_with}; whether Nova wrote it here is not known", when
    yield "libvirt: inactive XML", f"pmu {domain.defined or 'not seen'}", when


def _said(text: str | None) -> str:
    return "not shown" if text is None else f"= {text}" if text else "silent"
