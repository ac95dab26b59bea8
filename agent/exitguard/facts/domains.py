"""One domain's facts: what libvirt said of it, joined with the process that runs it. Pure but for the process's own file."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from exitguard.facts import domain_xml
from exitguard.facts.domain_xml import DomainXmlError, ParsedDomain
from exitguard.facts.libvirt import RawDomain
from exitguard.facts.processes import ProcessTable, RunningQemu, describe_process, match_process
from exitguard.facts.qemu import QemuReader
from exitguard.model.domain import DomainDefinition, DomainFacts, NovaInstance, Owner, OwnerKind, QemuProcess
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import DomainSample, Incarnation
from exitguard.model.time import parse_rfc3339

#: Nova starts the guest right after it has generated the XML; waiting for the network may take this long.
_START_AFTER_GENERATION = timedelta(seconds=120)
_CLOCK_SLACK = timedelta(seconds=2)


@dataclass(frozen=True)
class HostContext:
    """What every domain of one host is joined with: read once, used for all."""

    host_id: str
    boot_id: Observed[str]
    boot_time: Observed[datetime]
    ticks_per_second: int
    #: None where the target's processes cannot be seen from here; then `unseen_processes` says why.
    processes: ProcessTable | None
    unseen_processes: str
    reader: QemuReader


def describe_domain(raw: RawDomain, context: HostContext) -> tuple[DomainFacts, DomainSample | None]:
    """The facts of one domain, and the sample of its run where its process was found."""
    definition, defined = _parse(raw, raw.definition_xml)
    run, ran = _parse(raw, raw.run_xml)
    running = _find_process(raw, ran, context)
    process: Observed[QemuProcess] | None = None
    if running is not None:
        process = (
            seen(running.source, describe_process(running.value, context.reader))
            if running.value is not None
            else Observed(source=running.source, reason=running.reason, unlock=running.unlock)
        )
    nova = (ran.nova if ran is not None else None) or (defined.nova if defined is not None else None)
    facts = DomainFacts(
        uuid=raw.uuid,
        name=raw.name,
        active=raw.active,
        managed_save=raw.managed_save,
        definition=definition,
        run=run,
        process=process,
        owner=_owner(defined, ran),
        nova=nova,
        started_as_generated=_started_as_generated(nova, running, context) if nova is not None and raw.active.value else None,
        locked=(defined is not None and defined.locked) or (ran is not None and ran.locked),
    )
    return facts, _sample(raw.uuid, running, context)


def _parse(raw: RawDomain, xml: Observed[str] | None) -> tuple[Observed[DomainDefinition] | None, ParsedDomain | None]:
    if xml is None:
        return None, None
    if xml.value is None:
        return Observed(source=xml.source, reason=xml.reason, unlock=xml.unlock), None
    try:
        parsed = domain_xml.parse(xml.value)
    except DomainXmlError as error:
        return unseen(xml.source, str(error)), None
    if parsed.uuid != raw.uuid:
        return unseen(xml.source, f"it names domain {parsed.uuid}, expected {raw.uuid}"), None
    return seen(xml.source, parsed.definition), parsed


def _owner(defined: ParsedDomain | None, ran: ParsedDomain | None) -> Owner:
    """Who owns the definition. A manager that the run names owns it too: somebody may have redefined the domain without its metadata."""
    owners = [parsed.owner for parsed in (defined, ran) if parsed is not None]
    if not owners:
        return Owner(kind=OwnerKind.UNKNOWN, name="its XML could not be read")
    return next((owner for owner in owners if owner.kind is not OwnerKind.LIBVIRT), owners[0])


def _find_process(raw: RawDomain, ran: ParsedDomain | None, context: HostContext) -> Observed[RunningQemu] | None:
    """The process of a running domain; None where nothing runs, or what runs is no QEMU."""
    if raw.active.value is not True or (ran is not None and ran.definition.type not in ("kvm", "qemu")):
        return None
    if context.processes is None:
        return unseen("/proc", context.unseen_processes)
    return match_process(context.processes, raw.uuid, ran.process_uid if ran is not None else None)


def _started_as_generated(nova: NovaInstance, running: Observed[RunningQemu] | None, context: HostContext) -> Observed[bool]:
    """Whether the run began right after Nova generated its XML, on this host: then that XML is Nova's own word.

    A definition that somebody changed with `virsh define` shows up as a start much later than Nova's creationTime.
    """
    source = "nova:creationTime and the start of the process"
    if running is None or running.value is None:
        return unseen(source, running.reason or "no process" if running is not None else "no process")
    if nova.created_at is None or context.boot_time.value is None:
        return unseen(
            source, "Nova's creationTime is not readable" if nova.created_at is None else context.boot_time.reason or "no boot time"
        )
    try:
        generated = parse_rfc3339(nova.created_at)
        started = context.boot_time.value + timedelta(seconds=running.value.start_ticks / context.ticks_per_second)
        at_once = generated - _CLOCK_SLACK <= started <= generated + _START_AFTER_GENERATION
    except ValueError as error:
        return unseen(source, str(error))
    except OverflowError:
        return unseen(source, "one of the two lies outside the calendar")
    return seen(source, at_once and not running.value.command_line.incoming)


def _sample(uuid: str, running: Observed[RunningQemu] | None, context: HostContext) -> DomainSample | None:
    if running is None or running.value is None:
        return None
    incarnation = None
    if context.boot_id.value is not None:
        incarnation = Incarnation(
            host_id=context.host_id, domain_uuid=uuid, boot_id=context.boot_id.value, qemu_start_ticks=running.value.start_ticks
        )
    return DomainSample(uuid=uuid, pid=running.value.pid, incarnation=incarnation)
