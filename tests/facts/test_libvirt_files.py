import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import domain_xml
from exitguard.facts.domain_xml import LIMIT_CHARACTERS, DomainXmlError
from exitguard.facts.libvirt import RawDomain
from exitguard.facts.libvirt_files import DEFINITIONS, RUNNING, SAVES, SaveHeader, parse_save_header, read_libvirt_files
from exitguard.facts.tree import HostTree
from exitguard.model.pmu import PmuElement

HERE = Path(__file__).parent
UUID = "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"
DOMSTATUS = (HERE / "domain_xml/libvirt-domstatus/input").read_text()
SAVE = (HERE / "save_file/libvirt-9.0/input").read_bytes()


OTHER_UUID = "813b0c1a-48cc-4074-9228-2fd0b7077ef6"


def domain(name: str = "guest", *, pmu: str = "off", uuid: str = UUID) -> str:
    return f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><features><pmu state='{pmu}'/></features></domain>"


def save(xml: bytes, *, magic: bytes = b"LibvirtQemudSave", length: int | None = None) -> bytes:
    return struct.pack("=16s5I56x", magic, 2, len(xml) if length is None else length, 1, 0, 0) + xml


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in (DEFINITIONS, RUNNING, SAVES):
        (tmp_path / folder.lstrip("/")).mkdir(parents=True)
    return tmp_path


def put(root: Path, folder: str, name: str, content: str | bytes) -> Path:
    path = root / folder.lstrip("/") / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(root: Path) -> dict[str, RawDomain]:
    return {raw.name: raw for raw in read_libvirt_files(HostTree(root)).domains}


def pmu_of(raw: RawDomain) -> tuple[PmuElement | None, PmuElement | None]:
    """What the definition and the run say."""
    definition, run = (domain_xml.parse(xml.get()).definition.pmu if xml is not None else None for xml in (raw.definition_xml, raw.run_xml))
    return definition, run


# What is there


def test_definition_alone_is_a_domain_that_is_shut_off(root: Path) -> None:
    put(root, DEFINITIONS, "guest.xml", f"<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.\n-->\n\n{domain()}\n")
    raw = read(root)["guest"]
    assert (raw.uuid, raw.active.value, raw.managed_save.value) == (UUID, False, False)
    assert pmu_of(raw) == (PmuElement.OFF, None)
    assert raw.definition_xml is not None
    assert raw.definition_xml.source == f"{DEFINITIONS}/guest.xml"


def test_running_domain_is_read_out_of_what_a_real_libvirt_keeps_of_it(root: Path) -> None:
    name = "record-kvm-custom-off"
    put(root, DEFINITIONS, f"{name}.xml", domain(name, pmu="on"))
    put(root, RUNNING, f"{name}.xml", DOMSTATUS)
    raw = read(root)[name]
    assert (raw.uuid, raw.active.value) == (UUID, True)
    assert pmu_of(raw) == (PmuElement.ON, PmuElement.OFF)


def test_transient_domain_has_no_definition(root: Path) -> None:
    put(root, RUNNING, "record-kvm-custom-off.xml", DOMSTATUS)
    raw = read(root)["record-kvm-custom-off"]
    assert (raw.uuid, raw.definition_xml) == (UUID, None)
    assert pmu_of(raw) == (None, PmuElement.OFF)


def test_managed_save_of_a_real_libvirt_counts_as_the_run_that_it_holds(root: Path) -> None:
    name = "record-kvm-custom-off"
    put(root, DEFINITIONS, f"{name}.xml", domain(name, pmu="on"))
    put(root, SAVES, f"{name}.save", SAVE)
    raw = read(root)[name]
    assert (raw.active.value, raw.managed_save.value) == (False, True)
    assert pmu_of(raw) == (PmuElement.ON, PmuElement.OFF)


def test_save_of_a_running_domain_is_not_its_run(root: Path) -> None:
    put(root, RUNNING, "guest.xml", f"<domstatus>{domain(pmu='on')}</domstatus>")
    put(root, SAVES, "guest.save", save(domain(pmu="off").encode()))
    raw = read(root)["guest"]
    assert raw.managed_save.value is True
    assert pmu_of(raw) == (None, PmuElement.ON)


def test_only_files_of_domains_are_read_and_in_a_fixed_order(root: Path) -> None:
    for name in ("b", "a"):
        put(root, DEFINITIONS, f"{name}.xml", domain(name))
    put(root, RUNNING, "c.xml", f"<domstatus>{domain('c')}</domstatus>")
    for name in ("a.xml.new", "driver.pid", ".xml~"):
        put(root, RUNNING, name, "")
    (root / "etc/libvirt/qemu/networks").mkdir()
    (root / "etc/libvirt/qemu/autostart").mkdir()
    assert list(read(root)) == ["a", "b", "c"]


def test_daemon_is_not_asked(root: Path) -> None:
    facts = read_libvirt_files(HostTree(root)).facts
    assert facts.listing.value is True
    assert facts.daemon_version.reason == facts.driver.reason == "a file tree has no daemon to ask"


# What is not there, or not as it should be


def test_tree_without_libvirt_says_so(tmp_path: Path) -> None:
    reading = read_libvirt_files(HostTree(tmp_path))
    assert (reading.facts.listing.value, reading.facts.listing.reason) == (None, "no such file or directory")
    assert list(reading.domains) == []


def test_tree_without_what_runs_does_not_claim_that_nothing_does(tmp_path: Path) -> None:
    (tmp_path / "etc/libvirt/qemu").mkdir(parents=True)
    put(tmp_path, DEFINITIONS, "guest.xml", domain())
    raw = read(tmp_path)["guest"]
    assert raw.active.reason == raw.managed_save.reason == "no such file or directory"
    assert raw.run_xml is not None
    assert (raw.run_xml.source, raw.run_xml.reason) == (RUNNING, "no such file or directory")


def test_unlisted_saves_may_hold_the_run(root: Path) -> None:
    (root / SAVES.lstrip("/")).rmdir()
    put(root, DEFINITIONS, "guest.xml", domain())
    raw = read(root)["guest"]
    assert (raw.active.value, raw.managed_save.value) == (False, None)
    assert raw.run_xml is not None
    assert (raw.run_xml.source, raw.run_xml.reason) == (SAVES, "no such file or directory")


def test_unlisted_saves_do_not_matter_to_a_running_domain(root: Path) -> None:
    (root / SAVES.lstrip("/")).rmdir()
    put(root, RUNNING, "guest.xml", f"<domstatus>{domain()}</domstatus>")
    assert pmu_of(read(root)["guest"]) == (None, PmuElement.OFF)


@pytest.mark.parametrize("content", ["", "no xml", "<network/>", "<domstatus/>", "<!DOCTYPE domain><domain/>", domain(uuid="x"), "\0"])
def test_file_that_is_no_domain_is_a_domain_without_a_uuid(root: Path, content: str) -> None:
    put(root, DEFINITIONS, "odd.xml", content)
    put(root, DEFINITIONS, "guest.xml", domain())
    read_domains = read(root)
    assert read_domains["odd"].uuid == "unreadable:odd"
    assert read_domains["guest"].uuid == UUID


def test_uuid_comes_from_the_run_where_the_definition_cannot_be_read(root: Path) -> None:
    put(root, DEFINITIONS, "record-kvm-custom-off.xml", "<domain>")
    put(root, RUNNING, "record-kvm-custom-off.xml", DOMSTATUS)
    assert read(root)["record-kvm-custom-off"].uuid == UUID


def test_definition_larger_than_any_is_not_read(root: Path) -> None:
    with put(root, DEFINITIONS, "guest.xml", domain()).open("r+b") as file:
        file.truncate(50 << 20)
    definition = read(root)["guest"].definition_xml
    assert definition is not None
    assert "larger than 4194304 bytes" in (definition.reason or "")


def test_deep_and_swelling_definitions_are_survived(root: Path) -> None:
    # Deep enough to break whatever walks it by calling itself; and one that grows when it is written with prefixes.
    put(root, DEFINITIONS, "deep.xml", domain("deep").replace("<features>", "<a>" * 300_000 + "</a>" * 300_000 + "<features>"))
    put(
        root,
        DEFINITIONS,
        "wide.xml",
        domain("wide", uuid=OTHER_UUID).replace("<features>", f"<a xmlns='urn:a'>{'<a/>' * 1_000_000}</a><features>"),
    )
    assert {raw.name: pmu_of(raw) for raw in read(root).values()} == dict.fromkeys(("deep", "wide"), (PmuElement.OFF, None))


def test_two_files_of_one_uuid_are_two_domains_and_the_second_tells_nothing(root: Path) -> None:
    put(root, DEFINITIONS, "first.xml", domain("first"))
    put(root, DEFINITIONS, "second.xml", domain("second", pmu="on"))
    raw = read(root)
    assert (raw["first"].uuid, raw["second"].uuid) == (UUID, "unreadable:second")
    assert raw["second"].definition_xml is not None
    assert raw["second"].definition_xml.reason == "its uuid is also that of first.xml"


def test_links_do_not_lead_out_of_the_tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.xml"
    outside.write_text(domain("secret"))
    (root / DEFINITIONS.lstrip("/") / "guest.xml").symlink_to(outside)
    (root / SAVES.lstrip("/") / "guest.save").symlink_to(outside)
    raw = read(root)["guest"]
    assert raw.uuid == "unreadable:guest"
    assert raw.definition_xml is not None
    assert raw.run_xml is not None
    assert raw.definition_xml.reason == raw.run_xml.reason == "no such file or directory"
    (root / RUNNING.lstrip("/")).rmdir()
    (root / RUNNING.lstrip("/")).symlink_to(outside.parent)
    assert read(root)["guest"].active.value is None


def test_file_that_blocks_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / DEFINITIONS.lstrip("/") / "guest.xml")
    os.mkfifo(root / SAVES.lstrip("/") / "guest.save")
    raw = read(root)["guest"]
    assert raw.definition_xml is not None
    assert raw.run_xml is not None
    assert raw.definition_xml.reason == raw.run_xml.reason == "not a regular file"


# The head of a managed save


def test_save_written_before_cookies_is_read(root: Path) -> None:
    put(root, DEFINITIONS, "guest.xml", domain(pmu="on"))
    put(root, SAVES, "guest.save", save(domain(pmu="off").encode(), magic=b"LibvirtQemudPart") + b"QEVM")
    assert pmu_of(read(root)["guest"]) == (PmuElement.ON, PmuElement.OFF)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "shorter than the header of a libvirt save file"),
        (SAVE[:91], "shorter than the header of a libvirt save file"),
        (b"x" * 92, "not a libvirt save file"),
        (save(b"", length=LIMIT_CHARACTERS + 1), "4194305 bytes of XML, expected at most 4194304"),
    ],
)
def test_save_with_another_head_has_a_reason(root: Path, content: bytes, reason: str) -> None:
    put(root, DEFINITIONS, "guest.xml", domain())
    put(root, SAVES, "guest.save", content)
    run = read(root)["guest"].run_xml
    assert run is not None
    assert run.reason == reason


@pytest.mark.parametrize("content", [SAVE[:92], SAVE[:500], save(b"\xff\xfe"), save(b"", length=0), save(b"<network/>")])
def test_save_that_holds_no_domain_is_read_as_text_that_is_none(root: Path, content: bytes) -> None:
    put(root, DEFINITIONS, "guest.xml", domain())
    put(root, SAVES, "guest.save", content)
    run = read(root)["guest"].run_xml
    assert run is not None
    with pytest.raises(DomainXmlError):
        domain_xml.parse(run.get())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_save_header_or_a_domain_xml_error(head: bytes) -> None:
    with pytest.raises(DomainXmlError):
        parse_save_header(head)


@given(st.sampled_from([b"LibvirtQemudSave", b"LibvirtQemudPart"]), st.binary(min_size=76, max_size=100))
def test_header_tells_a_bounded_length_whatever_follows_the_magic(magic: bytes, rest: bytes) -> None:
    length = int.from_bytes(rest[4:8], "little")
    if length > LIMIT_CHARACTERS:
        with pytest.raises(DomainXmlError, match="expected at most"):
            parse_save_header(magic + rest)
    else:
        assert parse_save_header(magic + rest) == SaveHeader(data_bytes=length)
