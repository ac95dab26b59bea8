"""Everything that can be observed of one target, in one pass: the host once, then each domain as libvirt answers."""

import os
from collections.abc import Iterable
from datetime import datetime
from typing import TypeVar

from exitguard.facts.clock import boottime_nanoseconds, read_boot_time
from exitguard.facts.cpu import read_cpu
from exitguard.facts.domains import HostContext, describe_domain
from exitguard.facts.identity import read_dmi_uuid, read_hostname, read_machine_id
from exitguard.facts.kernel import read_kernel
from exitguard.facts.kvm import read_kvm
from exitguard.facts.libvirt import LibvirtReading, Patience, read_libvirt
from exitguard.facts.libvirt_files import read_libvirt_files
from exitguard.facts.livepatch import read_live_patches
from exitguard.facts.maintenance import read_maintenance
from exitguard.facts.mitigations import read_mitigations
from exitguard.facts.nova_conf import read_nova_option
from exitguard.facts.processes import ProcessTable, read_processes, read_unmanaged
from exitguard.facts.qemu import QemuReader
from exitguard.facts.tree import HostTree
from exitguard.model.documents import FactsDocument, Observation
from exitguard.model.domain import DomainFacts
from exitguard.model.host import (
    Cpu,
    HostFacts,
    HostIdentity,
    KernelFacts,
    KvmFacts,
    Mitigations,
    NovaOption,
    QemuBinary,
    Target,
    TargetKind,
    UnmanagedGuest,
)
from exitguard.model.record import Observed, seen, unseen
from exitguard.model.samples import DomainSample, Samples
from exitguard.policy.parameters import NovaDefaultParameters

#: Where distributions install QEMU for x86: what the next domain that is defined would name.
_USUAL_EMULATORS = ("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm")
#: A host with more than this many different emulators is not a host but an attack on this loop.
_MAX_EMULATORS = 64

_REMOTE = "remote: only libvirt can be seen through this URI; run the audit on the host itself"
T = TypeVar("T")


def read_identity(target: Target, tree: HostTree, *, host_id: str, provisional: bool) -> HostIdentity:
    """Who the host says it is. `host_id` is the caller's: minted beside a store, or provisional."""
    remote = target.kind is TargetKind.REMOTE
    return HostIdentity(
        id=host_id,
        provisional=provisional,
        hostname=_remote("/proc/sys/kernel/hostname") if remote else read_hostname(tree),
        machine_id=_remote("/etc/machine-id") if remote else read_machine_id(tree),
        dmi_uuid=_remote("/sys/class/dmi/id/product_uuid") if remote else read_dmi_uuid(tree),
    )


def collect(
    target: Target,
    identity: HostIdentity,
    tree: HostTree,
    *,
    changelog_markers: tuple[str, ...],
    patience: Patience,
    observed_at: datetime,
    nova_default: NovaDefaultParameters | None = None,
) -> Observation:
    """Facts and samples of one target. Never raises for what it cannot see: that is a reason in the facts.

    `nova_default` names the option of nova.conf that is looked at; without it those files are not opened.
    """
    remote = target.kind is TargetKind.REMOTE
    reading = _read_domains(target, tree, patience)  # libvirt answers while the host is read
    kvm = _remote_kvm() if remote else read_kvm(tree)
    kernel = _remote_kernel() if remote else read_kernel(tree, changelog_markers=changelog_markers, kvm=kvm, pulse=patience.pulse)
    reader = QemuReader(tree)
    processes = None if remote else read_processes(tree)
    cpu: Observed[Cpu] = _remote("/proc/cpuinfo") if remote else read_cpu(tree)
    mitigations: Observed[Mitigations] = _remote("/sys/devices/system/cpu/vulnerabilities") if remote else read_mitigations(tree)
    context = _context(identity.id, kernel.boot_id, tree, reader, processes)
    described = [describe_domain(raw, context) for raw in reading.domains]
    domains = tuple(sorted((facts for facts, _ in described), key=lambda domain: domain.uuid))
    host = HostFacts(
        target=target,
        identity=identity,
        kernel=kernel,
        cpu=cpu,
        mitigations=mitigations,
        kvm=kvm,
        qemu=_remote("QEMU programs") if remote else _read_binaries(reader, domains),
        libvirt=reading.facts,
        unmanaged=_read_unmanaged(target, tree, processes, domains, reading.facts.listing),
        maintenance=None if remote else read_maintenance(tree),
        nova_option=None if nova_default is None else _read_nova_option(nova_default, tree, remote=remote),
    )
    return Observation(
        facts=FactsDocument(observed_at=observed_at, host=host, domains=domains),
        samples=_samples(observed_at, context, (sample for _, sample in described)),
    )


class DomainsUnseen(Exception):  # noqa: N818 - nobody's error: libvirt may answer later
    """libvirt did not tell of the domains that were asked about; the message says why."""


def collect_again(facts: FactsDocument, tree: HostTree, uuids: frozenset[str], *, patience: Patience, observed_at: datetime) -> Observation:
    """`facts` with the domains in `uuids` looked at anew, or left out where they are gone; and the samples of these alone.

    Of the host only what judges a domain and may change in a moment is looked at again: KVM's switches, live patches, the QEMU
    programs on disk. Everything else stands as it was. Raises DomainsUnseen where libvirt does not tell.
    """
    host = facts.host
    reading = read_libvirt(host.target.uri or "", patience, uuids=uuids)
    if reading.facts.listing.reason is not None:
        raise DomainsUnseen(reading.facts.listing.reason)
    processes = None if host.target.kind is TargetKind.REMOTE else read_processes(tree)
    reader = QemuReader(tree)
    context = _context(host.identity.id, host.kernel.boot_id, tree, reader, processes)
    described = [describe_domain(raw, context) for raw in reading.domains]
    seen_again = {domain.uuid: domain for domain, _ in described}
    others = {domain.uuid: domain for domain in facts.domains if domain.uuid not in uuids}
    domains = tuple(sorted((others | seen_again).values(), key=lambda domain: domain.uuid))
    if processes is not None:
        kernel = host.kernel.model_copy(update={"live_patches": read_live_patches(tree)})
        host = host.model_copy(update={"kernel": kernel, "kvm": read_kvm(tree), "qemu": _read_binaries(reader, domains)})
    return Observation(
        facts=facts.seen_again(host, domains, observed_at), samples=_samples(observed_at, context, (sample for _, sample in described))
    )


def _context(host_id: str, boot_id: Observed[str], tree: HostTree, reader: QemuReader, processes: ProcessTable | None) -> HostContext:
    return HostContext(
        host_id=host_id,
        boot_id=boot_id,
        boot_time=_remote("/proc/stat") if processes is None else read_boot_time(tree),
        ticks_per_second=os.sysconf("SC_CLK_TCK"),
        processes=processes,
        unseen_processes=_REMOTE,
        reader=reader,
    )


def _samples(observed_at: datetime, context: HostContext, samples: Iterable[DomainSample | None]) -> Samples:
    return Samples(
        observed_at=observed_at,
        boottime_nanoseconds=boottime_nanoseconds(),
        boot_time=context.boot_time,
        domains=tuple(sorted((sample for sample in samples if sample is not None), key=lambda sample: sample.uuid)),
    )


def _read_domains(target: Target, tree: HostTree, patience: Patience) -> LibvirtReading:
    if target.uri is None:
        return read_libvirt_files(tree)
    return read_libvirt(target.uri, patience)


def _read_binaries(reader: QemuReader, domains: Iterable[DomainFacts]) -> Observed[tuple[QemuBinary, ...]]:
    """Every QEMU on disk that a definition names, and those in the usual places; each file is read once."""
    named = {path for path in _USUAL_EMULATORS if reader.tree.exists(path)}
    for domain in domains:
        for definition in (domain.definition, domain.run):
            emulator = definition.value.emulator if definition is not None and definition.value is not None else None
            if emulator is not None and emulator.startswith("/"):
                named.add(emulator)
    return seen("QEMU programs", tuple(reader.read_file(path) for path in sorted(named)[:_MAX_EMULATORS]))


def _read_nova_option(looked_for: NovaDefaultParameters, tree: HostTree, *, remote: bool) -> Observed[NovaOption]:
    if remote:
        return _remote("nova.conf")
    return read_nova_option(tree, looked_for.option, looked_for.value, looked_for.files)


def _read_unmanaged(
    target: Target, tree: HostTree, processes: ProcessTable | None, domains: tuple[DomainFacts, ...], listing: Observed[bool]
) -> Observed[tuple[UnmanagedGuest, ...]]:
    if processes is None:
        return _remote("/proc/*/fd")
    if target.kind is TargetKind.EMBEDDED:
        return unseen("/proc/*/fd", "libvirt's test driver knows nothing of this machine's guests")
    if listing.reason is not None:
        return unseen(listing.source, f"libvirt's own guests are not known: {listing.reason}", unlock=listing.unlock)
    # Whatever names a domain of libvirt's is not outside libvirt, even where it cannot be told which of several it is.
    managed = (process.pid for domain in domains for process in processes.by_uuid.get(domain.uuid, ()))
    return read_unmanaged(tree, managed)


def _remote(source: str) -> Observed[T]:
    return unseen(source, _REMOTE)


def _remote_kernel() -> KernelFacts:
    return KernelFacts(
        release=_remote("/proc/sys/kernel/osrelease"),
        architecture=_remote("uname"),
        distribution=_remote("/etc/os-release"),
        build_id=_remote("/sys/kernel/notes"),
        boot_id=_remote("/proc/sys/kernel/random/boot_id"),
        installed=_remote("/lib/modules"),
        boots_next=_remote("/boot"),
        live_patches=_remote("/sys/kernel/livepatch"),
        symbols=_remote("/proc/kallsyms"),
        changelog=_remote("the kernel package's changelog"),
        machine_code=_remote("machine code"),
    )


def _remote_kvm() -> KvmFacts:
    return KvmFacts(
        module=_remote("/sys/module/kvm"),
        parameters=_remote("/sys/module/kvm/parameters"),
        enable_pmu=_remote("/sys/module/kvm/parameters/enable_pmu"),
        enable_mediated_pmu=_remote("/sys/module/kvm/parameters/enable_mediated_pmu"),
        build_id=_remote("/sys/module/kvm/notes/.note.gnu.build-id"),
        device=_remote("/dev/kvm"),
    )
