"""Small builders of reports: each gives a whole, valid record, with what the test is about replaced."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exitguard.model.documents import AuditReport, DomainReport, HostReport, KernelReport, PmuReport, Summary
from exitguard.model.domain import Owner, OwnerKind
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding, Severity, Subject, SubjectKind, Verdict, exit_code
from exitguard.model.host import (
    Cpu,
    KvmDevice,
    KvmFacts,
    KvmModule,
    LibvirtFacts,
    MitigationClass,
    Mitigations,
    QemuBinary,
    QemuVersion,
    Target,
    TargetKind,
)
from exitguard.model.kernel import Body, KernelState
from exitguard.model.pmu import Chain, ChainState, Link, LinkName, NextAction, PmuSetting, Tri
from exitguard.model.record import seen, unseen

sys.path.insert(0, str(Path(__file__).parent))  # for machine_code_readings.py
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("savings", "audit")]  # for account_builders.py

HOST_ID = "7f0c2a4e-0d51-4c6e-9b1f-2f1f5a3f9a10"
MOMENT = datetime(2026, 5, 22, 3, 0, tzinfo=UTC)


def evidence(source: str = "/sys/module/kvm/parameters/enable_pmu", value: str = "Y") -> Evidence:
    return Evidence(source=source, value=value, observed_at=MOMENT)


def kernel(**changes: Any) -> KernelReport:
    fields: dict[str, Any] = {
        "release": "6.1.0-56-amd64",
        "state": KernelState.AFFECTED,
        "body": Body.A,
        "reason": "kvm_pmu_trigger_event is there and nothing shows the guard; the changelog does not name it",
        "pending_reboot": False,
        "pending_release": None,
        "evidence": (evidence("/proc/kallsyms", "kvm_pmu_trigger_event"),),
        "disagreements": (),
    }
    return KernelReport(**(fields | changes))


def host(**changes: Any) -> HostReport:
    fields: dict[str, Any] = {
        "id": HOST_ID,
        "id_provisional": False,
        "hostname": "compute-17.example.net",
        "target": Target(kind=TargetKind.LOCAL, uri="qemu:///system"),
        "kernel": kernel(),
        "cpu": seen(
            "/proc/cpuinfo",
            Cpu(
                vendor="AuthenticAMD",
                model_name="AMD EPYC 7302 16-Core Processor",
                family=23,
                model=49,
                stepping=0,
                microcode="0x830107c",
                logical_cpus=32,
                virtualization="svm",
                hypervisor=False,
            ),
        ),
        "mitigations": seen(
            "/sys/devices/system/cpu/vulnerabilities",
            Mitigations(
                lines={"retbleed": "Mitigation: untrained return thunk; SMT enabled"},
                classes=(MitigationClass.HEAVY_RETURN_TAX, MitigationClass.INDIRECT_CALL_TAX),
            ),
        ),
        "kvm": KvmFacts(
            module=seen("/sys/module/kvm", KvmModule(form="module", vendor_modules=("kvm_amd",))),
            parameters=seen("/sys/module/kvm/parameters", {"kvm.enable_pmu": "Y"}),
            enable_pmu=seen("/sys/module/kvm/parameters/enable_pmu", True),
            enable_mediated_pmu=unseen("/sys/module/kvm/parameters/enable_mediated_pmu", "this kernel has no such parameter"),
            build_id=seen("/sys/module/kvm/notes/.note.gnu.build-id", "ab" * 20),
            device=seen("/dev/kvm", KvmDevice(api_version=12, pmu_capability=1)),
        ),
        "qemu": seen(
            "/usr/bin",
            (
                QemuBinary(
                    path="/usr/bin/qemu-system-x86_64",
                    version=seen("strings", QemuVersion(version="7.2.22", package="Debian 1:7.2+dfsg-7")),
                    capability_string=seen("strings", False),
                ),
            ),
        ),
        "libvirt": LibvirtFacts(daemon_version=seen("libvirt", "9.0.0"), driver=seen("libvirt", "QEMU"), listing=seen("libvirt", True)),
        "unmanaged": seen("/proc/*/fd", ()),
    }
    return HostReport(**(fields | changes))


def chain(state: ChainState, action: NextAction, reason: str = "as observed") -> Chain:
    broken = {
        ChainState.UNGUARDED: (LinkName.KERNEL,),
        ChainState.PENDING_RESTART: (LinkName.RUNNING, LinkName.PROPAGATED),
        ChainState.ON: (LinkName.DEFINED, LinkName.RUNNING, LinkName.PROPAGATED),
        ChainState.REVERTS: (LinkName.DEFINED, LinkName.KEPT),
    }.get(state, ())
    links = tuple(Link(name=name, holds=Tri.NO if name in broken else Tri.YES, reason=f"{name}: {reason}") for name in LinkName)
    return Chain(state=state, reason=reason, links=links, broken_links=broken, next_action=action)


def domain(
    name: str = "web-1",
    state: ChainState = ChainState.ON,
    action: NextAction = NextAction.SET_PMU_OFF,
    *,
    number: int = 1,
    owner: Owner | None = None,
    pmu: tuple[PmuSetting, PmuSetting] = (PmuSetting.DEFAULT_ON, PmuSetting.DEFAULT_ON),
    reason: str = "as observed",
) -> DomainReport:
    return DomainReport(
        uuid=f"00000000-0000-4000-8000-{number:012d}",
        name=name,
        active=True,
        owner=owner or Owner(kind=OwnerKind.LIBVIRT, name="libvirt"),
        pmu=PmuReport(persistent=pmu[0], live=pmu[1]),
        chain=chain(state, action, reason),
        evidence=(evidence("virDomainGetXMLDesc(INACTIVE)", "cpu mode host-passthrough, no pmu element"),),
    )


def finding(verdict: Verdict = Verdict.FAIL, rule: str = "DOM-PMU-LIVE", **changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "rule": rule,
        "severity": Severity.MEDIUM,
        "subject": Subject(kind=SubjectKind.DOMAIN, id="00000000-0000-4000-8000-000000000001", name="web-1"),
        "verdict": verdict,
        "reason": "this run has the PMU on: its cpu mode is host-passthrough and nothing switches it off",
        "evidence": (evidence("/proc/4711/cmdline", "-cpu host"),),
    }
    return Finding(**(fields | changes))


def report(
    domains: tuple[DomainReport, ...] = (), findings: tuple[Finding, ...] = (), *, host_report: HostReport | None = None, **changes: Any
) -> AuditReport:
    fields: dict[str, Any] = {
        "observed_at": MOMENT,
        "policy": "pmu-off 1.0.0",
        "host": host_report or host(),
        "domains": domains,
        "findings": findings,
        "summary": Summary(
            by_verdict={verdict.value: sum(one.verdict is verdict for one in findings) for verdict in Verdict},
            by_chain={},
            exit_code=exit_code({one.verdict for one in findings}),
        ),
    }
    return AuditReport(**(fields | changes))


@pytest.fixture
def build() -> SimpleNamespace:
    return SimpleNamespace(
        evidence=evidence, kernel=kernel, host=host, chain=chain, domain=domain, finding=finding, report=report, moment=MOMENT
    )
