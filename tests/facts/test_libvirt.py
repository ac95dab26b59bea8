"""libvirt without a daemon: its embedded test driver, sockets that nobody serves, and no libvirt at all."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import domain_xml
from exitguard.facts.libvirt import DEFAULT_URI, Patience, RawDomain, read_libvirt, target_of
from exitguard.model.host import TargetKind
from exitguard.model.pmu import PmuElement

TEST = "test:///default"
TIMEOUT_SECONDS = 10.0


def read(uri: str, *, call_timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, RawDomain]:
    return {domain.name: domain for domain in read_libvirt(uri, Patience(call_timeout_seconds)).domains}


# Where a URI leads


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("qemu:///system", TargetKind.LOCAL),
        ("qemu:///session", TargetKind.LOCAL),
        ("QEMU:///system", TargetKind.LOCAL),
        ("qemu+unix:///system", TargetKind.LOCAL),
        ("qemu+unix:///system?socket=/run/libvirt/libvirt-sock-ro", TargetKind.LOCAL),
        ("xen:///", TargetKind.LOCAL),
        ("lxc:///system", TargetKind.LOCAL),
        ("qemu+ssh://node-1/system", TargetKind.REMOTE),
        ("qemu+ssh://root@node-1:2222/system?no_verify=1", TargetKind.REMOTE),
        ("qemu+tcp://127.0.0.1/system", TargetKind.REMOTE),
        ("qemu+tls://[::1]/system", TargetKind.REMOTE),
        ("qemu+ssh:///system", TargetKind.REMOTE),
        ("qemu+ext:///system?command=/bin/way-out", TargetKind.REMOTE),
        ("qemu://localhost/system", TargetKind.REMOTE),
        ("qemu+unix://node-1/system", TargetKind.REMOTE),
        ("test:///default", TargetKind.EMBEDDED),
        ("test:///etc/domains.xml", TargetKind.EMBEDDED),
        ("test+ssh://node-1/default", TargetKind.REMOTE),
        ("testing:///default", TargetKind.LOCAL),
        ("qemu+tcp://[::1/system", TargetKind.REMOTE),
    ],
)
def test_uri_with_a_host_or_a_transport_is_remote(uri: str, kind: TargetKind) -> None:
    target = target_of(uri)
    assert (target.kind, target.uri, target.sysroot) == (kind, uri, None)


@pytest.mark.parametrize("uri", [None, ""])
def test_no_uri_is_this_machines_system_daemon(uri: str | None) -> None:
    assert target_of(uri) == target_of(DEFAULT_URI)
    assert target_of(uri).kind is TargetKind.LOCAL


@given(st.one_of(st.text(), st.text().map(lambda text: f"qemu+tcp://{text}/system")))
def test_any_text_has_a_target(uri: str) -> None:
    assert target_of(uri).uri == (uri or DEFAULT_URI)


# What cannot be asked


def test_daemon_that_is_not_there_has_a_reason_and_what_would_help(tmp_path: Path) -> None:
    reading = read_libvirt(f"qemu+unix:///system?socket={tmp_path}/nobody", Patience(TIMEOUT_SECONDS))
    assert list(reading.domains) == []
    assert reading.facts.listing.value is None
    assert "No such file or directory" in (reading.facts.listing.reason or "")
    assert "start libvirtd" in (reading.facts.listing.unlock or "")
    assert reading.facts.daemon_version.reason == reading.facts.driver.reason == reading.facts.listing.reason


def test_socket_that_a_dead_daemon_left_is_no_daemon_either(tmp_path: Path) -> None:
    path = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
    reading = read_libvirt(f"qemu+unix:///system?socket={path}", Patience(TIMEOUT_SECONDS))
    assert "Connection refused" in (reading.facts.listing.reason or "")
    assert "start libvirtd" in (reading.facts.listing.unlock or "")


def test_uri_that_libvirt_does_not_know_has_its_word_for_a_reason() -> None:
    for uri in ("nosuchdriver:///system", "qemu+tcp://[::1/system", "\x00", "\ud800"):
        reading = read_libvirt(uri, Patience(TIMEOUT_SECONDS))
        assert list(reading.domains) == []
        assert reading.facts.listing.reason
        assert reading.facts.listing.source == uri


def test_socket_that_accepts_and_never_answers_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "deaf"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        reading = read_libvirt(f"qemu+unix:///system?socket={path}", Patience(0.05))
        assert list(reading.domains) == []
        assert reading.facts.listing.reason == "no answer within 0.2 s: the daemon may hang"
        assert reading.facts.listing.unlock == "a libvirt daemon that answers `virsh list`"


def test_missing_libvirt_python_has_a_reason_and_is_not_missed_before() -> None:
    script = """
import sys
sys.modules["libvirt"] = None  # what the import system leaves for a module that may not be loaded
from exitguard.facts.libvirt import Patience, read_libvirt
reading = read_libvirt("test:///default", Patience(1))
print(reading.facts.listing.reason, reading.facts.listing.unlock, list(reading.domains), sep=" / ")
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert shown.startswith("libvirt-python cannot be loaded: import of libvirt halted")
    assert shown.endswith(" / the package exitguard[host] / []\n")


def test_errors_do_not_reach_stderr() -> None:
    script = """
from exitguard.facts.libvirt import Patience, read_libvirt
assert read_libvirt("nosuchdriver:///", Patience(5)).facts.listing.reason
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stderr == ""


# The test driver

libvirt = pytest.importorskip("libvirt")


@pytest.fixture
def connection() -> Iterator[Any]:
    """The test driver's own host; while this is open, every connection of this process to it shares its domains."""
    opened = libvirt.open(TEST)
    known = {domain.UUIDString() for domain in opened.listAllDomains()}
    yield opened
    for domain in opened.listAllDomains():
        if domain.UUIDString() not in known:
            persistent = domain.isPersistent()
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    opened.close()


def kvm_domain(name: str, inside: str = "") -> str:
    return (
        f"<domain type='kvm'><name>{escape(name)}</name><uuid>{uuid4()}</uuid><memory unit='MiB'>16</memory><vcpu>1</vcpu>"
        f"<os><type arch='x86_64'>hvm</type></os>{inside}</domain>"
    )


def test_default_domain_runs_and_is_told_whole() -> None:
    reading = read_libvirt(TEST, Patience(TIMEOUT_SECONDS))
    domains = list(reading.domains)
    assert [domain.name for domain in domains] == ["test"]
    domain = domains[0]
    assert (domain.active.value, domain.managed_save.value) == (True, False)
    assert domain.definition_xml is not None
    assert domain.run_xml is not None
    for xml in (domain.definition_xml, domain.run_xml):
        parsed = domain_xml.parse(xml.get())
        assert (parsed.uuid, parsed.name, parsed.definition.type) == (domain.uuid, "test", "test")
    assert reading.facts.driver.value == "TEST"
    assert reading.facts.listing.value is True
    version = libvirt.getVersion()
    assert reading.facts.daemon_version.value == f"{version // 1_000_000}.{version // 1_000 % 1_000}.{version % 1_000}"


@pytest.mark.parametrize("cpu", ["<cpu mode='host-passthrough'/>", "<cpu mode='host-model'/>", "<cpu mode='maximum'/>", ""])
@pytest.mark.parametrize(
    ("pmu", "element"), [("<pmu state='off'/>", PmuElement.OFF), ("<pmu/>", PmuElement.ON), ("<acpi/>", PmuElement.ABSENT)]
)
def test_kvm_domain_of_any_cpu_mode_keeps_its_pmu_element(connection: Any, cpu: str, pmu: str, element: PmuElement) -> None:
    connection.defineXML(kvm_domain("guest", f"<features>{pmu}</features>{cpu}"))
    domain = read(TEST)["guest"]
    assert domain.run_xml is None
    assert domain.definition_xml is not None
    definition = domain_xml.parse(domain.definition_xml.get()).definition
    assert (definition.type, definition.pmu) == ("kvm", element)
    assert definition.cpu_mode == (cpu.split("'")[1] if cpu else None)


def test_custom_cpu_keeps_its_model(connection: Any) -> None:
    connection.defineXML(kvm_domain("guest", "<cpu mode='custom' match='exact'><model>EPYC</model></cpu>"))
    domain = read(TEST)["guest"]
    assert domain.definition_xml is not None
    definition = domain_xml.parse(domain.definition_xml.get()).definition
    assert (definition.cpu_mode, definition.cpu_model) == ("custom", "EPYC")


def test_running_domain_that_was_redefined_has_two_answers(connection: Any) -> None:
    xml = kvm_domain("guest", "<features><pmu state='on'/></features>")
    connection.defineXML(xml).create()
    connection.defineXML(xml.replace("'on'", "'off'"))
    domain = read(TEST)["guest"]
    assert domain.definition_xml is not None
    assert domain.run_xml is not None
    settings = [domain_xml.parse(answer.get()).definition.pmu for answer in (domain.definition_xml, domain.run_xml)]
    assert settings == [PmuElement.OFF, PmuElement.ON]
    assert [answer.source for answer in (domain.definition_xml, domain.run_xml)] == ["libvirt: inactive XML", "libvirt: live XML"]


def test_transient_domain_has_no_definition(connection: Any) -> None:
    connection.createXML(kvm_domain("guest"))
    domain = read(TEST)["guest"]
    assert domain.definition_xml is None
    assert domain.run_xml is not None
    assert domain.active.value is True


def test_managed_save_that_the_driver_cannot_show_has_a_reason(connection: Any) -> None:
    connection.defineXML(kvm_domain("guest")).create()
    connection.lookupByName("guest").managedSave()
    domain = read(TEST)["guest"]
    assert (domain.active.value, domain.managed_save.value) == (False, True)
    assert domain.run_xml is not None
    assert domain.run_xml.source == "libvirt: XML of the managed save"
    assert "not supported" in (domain.run_xml.reason or "")
    assert domain.run_xml.unlock


def test_operators_mark_set_with_virsh_metadata_is_seen(connection: Any) -> None:
    domain = connection.defineXML(kvm_domain("guest"))
    domain.setMetadata(
        libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<locked/>", "exitguard", domain_xml.LOCK_NAMESPACE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    )
    raw = read(TEST)["guest"]
    assert raw.definition_xml is not None
    assert domain_xml.parse(raw.definition_xml.get()).locked


@pytest.mark.parametrize("name", ["a b", "-c", "$(reboot)", "<pmu>", "&amp;", "\u202eemag", "..", "\U0001f600", "x" * 2000, "'\"", "%s%n"])
def test_hostile_name_is_only_a_name(connection: Any, name: str) -> None:
    connection.defineXML(kvm_domain(name))
    raw = read(TEST)[name]
    assert raw.definition_xml is not None
    assert domain_xml.parse(raw.definition_xml.get()).name == name


def test_hundred_domains_are_all_told_once(connection: Any) -> None:
    for number in range(100):
        connection.defineXML(kvm_domain(f"guest-{number}"))
    names = [domain.name for domain in read_libvirt(TEST, Patience(TIMEOUT_SECONDS)).domains]
    assert sorted(names) == sorted(["test", *(f"guest-{number}" for number in range(100))])


def test_file_of_the_test_driver_is_read(tmp_path: Path) -> None:
    path = tmp_path / "node.xml"
    features = "<features><pmu state='off'/></features>"
    guest = f"<domain type='test'><name>guest</name><memory>8192</memory><os><type>hvm</type></os>{features}</domain>"
    path.write_text(f"<node>{guest}</node>")
    raw = read(f"test://{path}")["guest"]
    assert raw.run_xml is not None
    assert domain_xml.parse(raw.run_xml.get()).definition.pmu is PmuElement.OFF
    missing = read_libvirt(f"test://{tmp_path}/missing.xml", Patience(TIMEOUT_SECONDS))
    assert list(missing.domains) == []
    assert missing.facts.listing.reason
