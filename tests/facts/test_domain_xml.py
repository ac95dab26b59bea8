import random
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import domain_xml
from exitguard.facts.domain_xml import LIMIT_CHARACTERS, DomainXmlError, ParsedDomain, parse
from exitguard.model.domain import Owner, OwnerKind
from exitguard.model.pmu import PmuElement

UUID = "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"
NOVA_1_1 = "http://openstack.org/xmlns/libvirt/nova/1.1"
QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
RECORDED = [case.read_text() for case in sorted(Path(__file__).parent.glob("domain_xml/*/input"))]

#: What XML 1.0 can carry at all: a manager escapes the rest away, or libvirt refuses it.
xml_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff", include_characters="\t\n"), max_size=80
)


def domain(inside: str = "", *, name: str = "guest", uuid: str = UUID, attributes: str = "type='kvm'") -> str:
    return f"<domain {attributes}><name>{name}</name><uuid>{uuid}</uuid>{inside}</domain>"


def with_arguments(*arguments: str) -> str:
    values = "".join(f"<qemu:arg value={quoteattr(argument)}/>" for argument in arguments)
    return domain(f"<qemu:commandline>{values}</qemu:commandline>", attributes=f"type='kvm' xmlns:qemu='{QEMU}'")


def nova_domain(
    *,
    name: str = "",
    flavor: str = "",
    spec_name: str = "hw:cpu_policy",
    spec: str = "",
    image_property: str = "",
    namespace: str = NOVA_1_1,
) -> str:
    return domain(
        f"""<metadata><nova:instance xmlns:nova='{namespace}'><nova:package version='32.0.0'/><nova:name>{escape(name)}</nova:name>
        <nova:flavor name={quoteattr(flavor)} id='1'><nova:extraSpecs>
        <nova:extraSpec name={quoteattr(spec_name)}>{escape(spec)}</nova:extraSpec>
        </nova:extraSpecs></nova:flavor><nova:image uuid='u'><nova:properties><nova:property name='os_distro'>{escape(image_property)}
        </nova:property></nova:properties></nova:image></nova:instance></metadata><features><pmu state='off'/></features>"""
    )


# The PMU element, and the CPU that resolves an absent one


@pytest.mark.parametrize(
    ("features", "element"),
    [
        ("<features><pmu state='on'/></features>", PmuElement.ON),
        ("<features><pmu state='off'/></features>", PmuElement.OFF),
        ("<features><pmu/></features>", PmuElement.ON),
        ("<features><acpi/></features>", PmuElement.ABSENT),
        ("<features/>", PmuElement.ABSENT),
        ("", PmuElement.ABSENT),
        ("<devices><pmu state='off'/></devices><pmu state='on'/>", PmuElement.ABSENT),
        ("<metadata><features xmlns='urn:x'><pmu state='off'/></features></metadata>", PmuElement.ABSENT),
        ("<features><x:pmu xmlns:x='urn:x' state='on'/></features>", PmuElement.ABSENT),
    ],
)
def test_pmu_element_is_on_off_or_absent(features: str, element: PmuElement) -> None:
    assert parse(domain(features)).definition.pmu is element


@pytest.mark.parametrize("state", ["", "ON", "yes", "true", "off ", "absent"])
def test_pmu_state_that_libvirt_does_not_know_is_refused(state: str) -> None:
    with pytest.raises(DomainXmlError, match="expected on or off"):
        parse(domain(f"<features><pmu state='{state}'/></features>"))


@pytest.mark.parametrize(
    ("cpu", "mode", "model"),
    [
        ("<cpu mode='host-passthrough' check='none' migratable='on'/>", "host-passthrough", None),
        ("<cpu mode='host-model'/>", "host-model", None),
        ("<cpu mode='maximum'/>", "maximum", None),
        ("<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC</model></cpu>", "custom", "EPYC"),
        ("<cpu match='exact'><model>kvm64</model></cpu>", "custom", "kvm64"),
        ("<cpu><topology sockets='1' cores='2' threads='1'/></cpu>", None, None),
        ("<cpu><model/></cpu>", "custom", None),
        ("", None, None),
    ],
)
def test_cpu_mode_and_model_are_as_written(cpu: str, mode: str | None, model: str | None) -> None:
    definition = parse(domain(cpu)).definition
    assert (definition.cpu_mode, definition.cpu_model) == (mode, model)


def test_type_machine_emulator_and_launch_security_are_read() -> None:
    definition = parse(
        domain(
            "<os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type></os><devices><emulator> /usr/bin/kvm </emulator></devices>"
            "<launchSecurity type='tdx'/>",
            attributes="type='qemu'",
        )
    ).definition
    assert (definition.type, definition.arch, definition.machine) == ("qemu", "x86_64", "pc-q35-9.2")
    assert (definition.emulator, definition.launch_security) == ("/usr/bin/kvm", "tdx")


def test_definition_that_says_little_leaves_the_rest_empty() -> None:
    definition = parse(domain("<os/><devices/>", attributes="")).definition
    assert (definition.type, definition.arch, definition.machine, definition.emulator) == ("", "", "", None)
    assert (definition.launch_security, definition.overrides) == (None, ())
    assert parse(domain("<os/>")).definition.emulator is None


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (("-cpu", "host,pmu=on"), ("-cpu host,pmu=on",)),
        (("--cpu", "host"), ("-cpu host",)),
        (("-global", "host-x86_64-cpu.pmu=on"), ("-global host-x86_64-cpu.pmu=on",)),
        (("-global", "driver=host-x86_64-cpu,property=pmu,value=on"), ("-global driver=host-x86_64-cpu,property=pmu,value=on",)),
        (("-readconfig", "/etc/qemu.conf"), ("-readconfig /etc/qemu.conf",)),
        (("-device", "edu", "-global", "ICH9-LPC.noreboot=off", "-msg", "timestamp=on"), ()),
        (("-cpu",), ("-cpu ",)),
        (("-cpu", "a") * 20, ("-cpu a",) * 8),
        (("-cpu", "x" * 1000), ("-cpu " + "x" * 195,)),
        ((), ()),
    ],
)
def test_arguments_that_can_change_the_cpu_are_overrides(arguments: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    assert parse(with_arguments(*arguments)).definition.overrides == overrides


def test_argument_element_without_a_value_is_harmless() -> None:
    xml = domain("<qemu:commandline><qemu:arg/><qemu:env name='A' value='-cpu'/></qemu:commandline>", attributes=f"xmlns:qemu='{QEMU}'")
    assert parse(xml).definition.overrides == ()


# Who owns it


@pytest.mark.parametrize(
    ("inside", "kind", "name"),
    [
        ("", OwnerKind.LIBVIRT, "libvirt"),
        ("<metadata/>", OwnerKind.LIBVIRT, "libvirt"),
        (
            "<metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'/></metadata>",
            OwnerKind.LIBVIRT,
            "libvirt",
        ),
        (
            "<metadata><c:data xmlns:c='https://github.com/cockpit-project/cockpit-machines'/></metadata>",
            OwnerKind.LIBVIRT,
            "libvirt",
        ),
        ("<metadata><ovirt-vm:vm xmlns:ovirt-vm='http://ovirt.org/vm/1.0'/></metadata>", OwnerKind.OTHER, "oVirt"),
        ("<metadata><k:kubevirt xmlns:k='http://kubevirt.io'/></metadata>", OwnerKind.OTHER, "KubeVirt"),
        (
            "<metadata><mine xmlns='urn:mine'/><k:kubevirt xmlns:k='http://kubevirt.io'/></metadata>",
            OwnerKind.OTHER,
            "KubeVirt",
        ),
        ("<metadata><mine xmlns='urn:mine'/></metadata>", OwnerKind.UNKNOWN, "metadata of an unknown manager: urn:mine"),
        ("<metadata><bare/></metadata>", OwnerKind.UNKNOWN, "metadata of an unknown manager: bare"),
        (
            "<sysinfo type='smbios'><system><entry name='product'>CloudStack KVM Hypervisor</entry></system></sysinfo>",
            OwnerKind.OTHER,
            "Apache CloudStack (by its sysinfo)",
        ),
        (
            "<sysinfo type='smbios'><system><entry name='manufacturer'>OpenStack Foundation</entry></system></sysinfo>",
            OwnerKind.OTHER,
            "OpenStack Nova (by its sysinfo)",
        ),
        ("<sysinfo type='smbios'><system><entry name='manufacturer'>LENOVO</entry></system></sysinfo>", OwnerKind.LIBVIRT, "libvirt"),
    ],
)
def test_owner_is_told_by_metadata_or_sysinfo(inside: str, kind: OwnerKind, name: str) -> None:
    assert parse(domain(inside)).owner == Owner(kind=kind, name=name)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_nova_owns_what_carries_its_metadata_in_either_version(version: str) -> None:
    parsed = parse(nova_domain(name="vm", namespace=f"http://openstack.org/xmlns/libvirt/nova/{version}"))
    assert parsed.owner == Owner(kind=OwnerKind.NOVA, name="Nova 32.0.0")
    assert parsed.nova is not None
    assert parsed.nova.name == "vm"


def test_nova_namespace_of_a_future_version_is_an_unknown_owner() -> None:
    parsed = parse(nova_domain(namespace="http://openstack.org/xmlns/libvirt/nova/2.0"))
    assert (parsed.owner.kind, parsed.nova) == (OwnerKind.UNKNOWN, None)


def test_nova_metadata_beside_another_managers_is_novas() -> None:
    xml = nova_domain().replace("<metadata>", "<metadata><k:kubevirt xmlns:k='http://kubevirt.io'/>")
    assert parse(xml).owner.kind is OwnerKind.NOVA


def test_nova_metadata_that_says_nothing_has_empty_fields() -> None:
    parsed = parse(domain(f"<metadata><instance xmlns='{NOVA_1_1}'/></metadata>"))
    assert parsed.owner == Owner(kind=OwnerKind.NOVA, name="Nova")
    assert parsed.nova is not None
    assert parsed.nova.model_dump() == {
        "version": "",
        "name": "",
        "flavor": "",
        "project": None,
        "created_at": None,
        "flavor_hw_pmu": None,
        "image_hw_pmu": None,
    }


def test_nova_before_32_stores_no_properties_and_later_silence_is_told_apart() -> None:
    before = next(parsed.nova for parsed in map(parse, RECORDED) if parsed.nova is not None)
    after = parse(nova_domain()).nova
    assert after is not None
    assert before.version == "26.2.2"
    assert (before.flavor_hw_pmu, before.image_hw_pmu) == (None, None)
    assert (after.flavor_hw_pmu, after.image_hw_pmu) == ("", "")


def test_hw_pmu_without_a_text_is_not_taken_for_silence() -> None:
    nova = parse(nova_domain(spec_name="hw:pmu", spec=" ")).nova
    assert nova is not None
    assert nova.flavor_hw_pmu == "empty"


@pytest.mark.parametrize("text", ["", "2026-11-22", "2026-11-22T15:39:25Z", "2026-11-22 15:39:25.1", "٢٠٢٦-11-22 15:39:25", "\n"])
def test_creation_time_in_another_form_is_none(text: str) -> None:
    xml = domain(f"<metadata><instance xmlns='{NOVA_1_1}'><creationTime>{text}</creationTime></instance></metadata>")
    nova = parse(xml).nova
    assert nova is not None
    assert nova.created_at is None


@pytest.mark.parametrize(
    ("metadata", "locked"),
    [
        ("<exitguard:locked xmlns:exitguard='urn:exitguard:domain:1'/>", True),
        ("<locked xmlns='urn:exitguard:domain:1'>because</locked>", True),
        ("<note xmlns='urn:exitguard:domain:1'/>", False),
        ("<locked/>", False),
        ("<locked xmlns='urn:other'/>", False),
        ("<outer xmlns='urn:other'><locked xmlns='urn:exitguard:domain:1'/></outer>", False),
    ],
)
def test_operators_mark_locks(metadata: str, *, locked: bool) -> None:
    assert parse(domain(f"<metadata>{metadata}</metadata>")).locked is locked


def test_operators_mark_does_not_make_an_owner() -> None:
    assert parse(domain("<metadata><locked xmlns='urn:exitguard:domain:1'/></metadata>")).owner.kind is OwnerKind.LIBVIRT


@pytest.mark.parametrize(
    ("labels", "uid"),
    [
        ("<seclabel model='dac'><label>+64055:+64055</label></seclabel>", 64055),
        ("<seclabel model='apparmor'><label>+1:+1</label></seclabel><seclabel model='dac'><label>107:107</label></seclabel>", 107),
        ("<seclabel model='dac'><label>+0:+0</label></seclabel>", 0),
        ("<seclabel model='dac'><label>qemu:qemu</label></seclabel>", None),
        ("<seclabel model='dac'><label>+99999999999:+1</label></seclabel>", None),
        ("<seclabel model='dac'/>", None),
        ("<seclabel model='selinux'><label>+1:+1</label></seclabel>", None),
        ("", None),
    ],
)
def test_user_of_the_process_is_the_dac_label_in_numbers(labels: str, uid: int | None) -> None:
    assert parse(domain(labels)).process_uid == uid


# What a tenant writes


@given(name=xml_text, flavor=xml_text, spec_name=xml_text.filter(lambda text: text != "hw:pmu"), spec=xml_text, image_property=xml_text)
def test_tenants_words_change_neither_owner_nor_lock_nor_pmu(
    name: str, flavor: str, spec_name: str, spec: str, image_property: str
) -> None:
    plain = parse(nova_domain())
    said = parse(nova_domain(name=name, flavor=flavor, spec_name=spec_name, spec=spec, image_property=image_property))
    assert (said.owner, said.locked, said.definition, said.process_uid) == (plain.owner, plain.locked, plain.definition, plain.process_uid)
    assert said.nova is not None
    assert (said.nova.flavor_hw_pmu, said.nova.image_hw_pmu) == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "</nova:name></nova:instance></metadata><features><pmu state='on'/></features>",
        "<locked xmlns='urn:exitguard:domain:1'/>",
        "]]><pmu/>",
        "<!--",
        "&amp;lt;pmu/&amp;gt;",
        "hw:pmu",
    ],
)
def test_name_that_looks_like_markup_stays_text(text: str) -> None:
    parsed = parse(nova_domain(name=text, flavor=text, spec=text))
    assert parsed.nova is not None
    assert (parsed.nova.name, parsed.nova.flavor) == (text, text)
    assert (parsed.definition.pmu, parsed.locked, parsed.nova.flavor_hw_pmu) == (PmuElement.OFF, False, "")


def test_hw_pmu_of_another_namespace_or_place_is_not_novas() -> None:
    xml = domain(
        f"""<metadata><n:instance xmlns:n='{NOVA_1_1}' xmlns:x='urn:x'><n:flavor name='f' id='1'><n:extraSpecs>
        <x:extraSpec name='hw:pmu'>true</x:extraSpec><n:extraSpec name='HW:PMU'>true</n:extraSpec></n:extraSpecs></n:flavor>
        <n:extraSpec name='hw:pmu'>true</n:extraSpec></n:instance></metadata>"""
    )
    nova = parse(xml).nova
    assert nova is not None
    assert nova.flavor_hw_pmu == ""


@pytest.mark.parametrize("name", ["a\u202eb", "a\u200bb", "a\x85b", "a\tb", "\U0001f600", "x" * 4096])
def test_odd_names_are_names(name: str) -> None:
    assert parse(domain(name=name)).name == name


# What is no domain


@pytest.mark.parametrize(
    ("xml", "complaint"),
    [
        ("", "not well-formed"),
        ("<domain>", "not well-formed"),
        ("<domain xmlns:a='urn:a'><b:c/></domain>", "not well-formed"),
        ("<network/>", "<network> where <domain> was expected"),
        ("<x:domain xmlns:x='urn:x'/>", "where <domain> was expected"),
        (domain(name=""), "no <name>"),
        (domain(name=" \n "), "no <name>"),
        (domain(name="x" * 4097), "longer than any domain name"),
        (domain(uuid=""), "no well-formed <uuid>"),
        (domain(uuid="1234"), "domain 'guest' has no well-formed <uuid>"),
        ("<domain><name>x</name></domain>", "no well-formed <uuid>"),
        ("<domain>\0</domain>", "not well-formed"),
        (domain(name="\x01"), "not well-formed"),
        (domain(name="\ud800"), "not XML text"),
        (domain(name="&#55296;"), "not well-formed"),
        (domain(name="&undefined;"), "not well-formed"),
        ("<domstatus state='running'/>", "a <domstatus> without a <domain>"),
        ("<domstatus><domstatus><domain/></domstatus></domstatus>", "a <domstatus> without a <domain>"),
    ],
)
def test_what_is_no_domain_is_refused_with_the_reason(xml: str, complaint: str) -> None:
    with pytest.raises(DomainXmlError, match=complaint):
        parse(xml)


@pytest.mark.parametrize(
    "declaration",
    [
        "<!DOCTYPE domain [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>",
        "<!DOCTYPE domain SYSTEM 'file:///etc/passwd'>",
        "<!DOCTYPE domain>",
        "\n<!-- comment -->\n<!DOCTYPE domain>",
        "<?xml version='1.0' encoding='utf-7'?><!DOCTYPE domain>",
    ],
)
def test_document_type_is_refused_before_parsing(declaration: str) -> None:
    with pytest.raises(DomainXmlError, match="document type"):
        parse(declaration + domain(name="&b;"))


def test_fifty_megabytes_are_refused_without_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: str) -> ET.Element:
        raise AssertionError("parsed")

    monkeypatch.setattr(ET, "fromstring", refuse)
    with pytest.raises(DomainXmlError, match="52428800 characters of XML, expected at most 4194304"):
        parse("x" * (50 << 20))


def test_three_hundred_thousand_nested_elements_are_survived() -> None:
    nested = "<a>" * 300_000 + "</a>" * 300_000
    assert parse(domain(f"<features><pmu state='off'/></features>{nested}")).definition.pmu is PmuElement.OFF
    assert parse(nova_domain().replace("</nova:instance>", f"{nested}</nova:instance>")).owner.kind is OwnerKind.NOVA
    with pytest.raises(DomainXmlError, match="<a> where"):
        parse(nested)


def test_attribute_as_long_as_the_limit_allows_is_read_and_a_longer_one_refused() -> None:
    room = LIMIT_CHARACTERS - len(domain("<launchSecurity type=''/>"))
    parsed = parse(domain(f"<launchSecurity type='{'x' * room}'/>"))
    assert len(parsed.definition.launch_security or "") == room
    with pytest.raises(DomainXmlError, match="characters of XML"):
        parse(domain(f"<launchSecurity type='{'x' * (room + 1)}'/>"))


# What is remembered


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, ParsedDomain]:
    remembered: dict[bytes, ParsedDomain] = {}
    monkeypatch.setattr(domain_xml, "_remembered", remembered)
    return remembered


def test_text_that_was_read_before_is_not_parsed_again(memory: dict[bytes, ParsedDomain], monkeypatch: pytest.MonkeyPatch) -> None:
    first = parse(RECORDED[0])
    assert list(memory.values()) == [first]
    monkeypatch.delattr(ET, "fromstring")
    assert parse(RECORDED[0]) is first


def test_text_that_differs_in_one_letter_is_another(memory: dict[bytes, ParsedDomain]) -> None:
    settings = [parse(domain(f"<features><pmu state='{state}'/></features>")).definition.pmu for state in ("on", "off", "on")]
    assert settings == [PmuElement.ON, PmuElement.OFF, PmuElement.ON]
    assert len(memory) == 2


def test_memory_holds_neither_too_many_nor_too_long_texts_nor_refused_ones(
    memory: dict[bytes, ParsedDomain], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain_xml, "_MAX_REMEMBERED", 3)
    for number in range(10):
        parse(domain(name=f"guest-{number}"))
        assert len(memory) <= 3
    memory.clear()
    parse(domain("<!--" + "x" * 70_000 + "-->"))
    with pytest.raises(DomainXmlError):
        parse("<domain>")
    assert memory == {}


# Any text at all


@given(st.text())
def test_any_text_is_a_domain_or_a_domain_xml_error(text: str) -> None:
    with pytest.raises(DomainXmlError):
        parse(text)


@given(st.sampled_from(RECORDED), st.randoms(use_true_random=False), st.text(max_size=5), st.integers(1, 8))
def test_mutated_real_xml_raises_nothing_but_domain_xml_error(xml: str, chance: random.Random, noise: str, cuts: int) -> None:
    for _ in range(cuts):
        start, end = sorted(chance.randrange(len(xml) + 1) for _ in range(2))
        piece = xml[start : min(end, start + 200)]
        where = chance.randrange(len(xml) + 1)
        xml = chance.choice([xml[:start] + xml[end:], xml[:where] + noise + xml[where:], xml[:where] + piece + xml[where:]])[:60_000]
    try:
        parsed = parse(xml)
    except DomainXmlError:
        return
    assert isinstance(parsed, ParsedDomain)


@given(st.sampled_from(RECORDED), st.data())
def test_real_xml_with_one_element_gone_is_still_a_domain_or_has_a_reason(xml: str, data: st.DataObject) -> None:
    root = ET.fromstring(xml)  # noqa: S314 - our own recording
    parents = [element for element in root.iter() if len(element)]
    parent = data.draw(st.sampled_from(parents))
    gone = data.draw(st.sampled_from(list(parent)))
    parent.remove(gone)
    text = ET.tostring(root, encoding="unicode")
    if gone.tag in {"name", "uuid", "domain"} and parent.tag in {"domain", "domstatus"}:
        with pytest.raises(DomainXmlError):
            parse(text)
    else:
        assert parse(text).uuid == parse(xml).uuid
