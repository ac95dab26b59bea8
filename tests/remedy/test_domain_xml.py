import ast
import sys
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exitguard
from exitguard.facts import domain_xml as facts
from exitguard.model.domain import OwnerKind
from exitguard.remedy import domain_xml
from exitguard.remedy.domain_xml import (
    ABSENT,
    LIMIT_BYTES,
    LIMIT_DEPTH,
    LIMIT_ELEMENTS,
    OFF,
    ON,
    STATES,
    DomainXmlRefusedError,
    differs_only_in_pmu,
    features_diff,
    fingerprint,
    pmu_element,
    where_they_differ,
    why_not_ours,
    with_pmu,
    without_secrets,
)

REPOSITORY = Path(exitguard.__file__).resolve().parents[2]
UUID = "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"
RECORDED_FOLDER = REPOSITORY / "tests" / "facts" / "domain_xml"
RECORDED = {case.parent.name: case.read_text() for case in sorted(RECORDED_FOLDER.glob("*/input")) if "domstatus" not in case.parent.name}


def domain(inside: str = "", attributes: str = "type='kvm'") -> str:
    return f"<domain {attributes}><name>guest</name><uuid>{UUID}</uuid>{inside}</domain>"


def printed(features: str) -> str:
    """A definition as libvirt prints it."""
    return (
        f"<domain type='kvm'>\n  <name>guest</name>\n  <uuid>{UUID}</uuid>\n  <os>\n    <type arch='x86_64'>hvm</type>\n  </os>\n"
        f"{features}  <cpu mode='maximum'/>\n  <devices>\n    <graphics type='vnc' passwd='s&lt;3&apos;' listen=' passwd=&quot;&quot;'/>\n"
        "  </devices>\n</domain>\n"
    )


# Generated definitions

names = st.sampled_from(["features", "pmu", "hyperv", "passwd", "cookies", "graphics", "source", "a"])
xml_text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=12)
texts = xml_text.map(escape) | st.sampled_from(
    ["<![CDATA[<pmu state='on'/>]]>", "<!-- <features><pmu/></features> -->", "<?pmu on?>", "\n  "]
)
attributes = st.dictionaries(st.sampled_from(["state", "passwd", "name", "type"]), xml_text, max_size=3).map(
    lambda values: "".join(f" {name}={quoteattr(value)}" for name, value in values.items())
)


def element(name: str, attributes: str, content: str) -> str:
    return f"<{name}{attributes}>{content}</{name}>" if content else f"<{name}{attributes}/>"


#: Elements that look like those that matter, in places where they do not.
lookalikes = st.recursive(
    st.builds(element, names, attributes, texts),
    lambda inner: st.builds(element, names, attributes, st.lists(inner | texts, max_size=3).map("".join)),
    max_leaves=6,
)
feature = st.sampled_from(["acpi", "apic", "hyperv", "kvm", "vmport", "smm", "ibs", "of-tomorrow"]).flatmap(
    lambda name: st.builds(element, st.just(name), attributes, lookalikes | st.just(""))
)
pmus = st.sampled_from(["", "<pmu/>", "<pmu state='on'/>", '<pmu  state = "off" ></pmu>', "<pmu state='off'/>"])


@st.composite
def definitions(draw: st.DrawFn) -> str:
    features = [*draw(st.lists(feature, max_size=3, unique_by=lambda xml: xml[:4])), draw(pmus)]
    inner = "\n    ".join(draw(st.permutations(features)))
    parts = [
        f"<metadata>{draw(lookalikes)}</metadata>",
        element("os", "", draw(lookalikes)),
        draw(st.sampled_from(["", "<features/>"])) if not inner.strip() else f"<features>{inner}</features>",
        element("cpu", " mode='custom'", f"<model>{draw(xml_text.map(escape))}</model>{draw(lookalikes)}"),
        f"<devices>{''.join(draw(st.lists(lookalikes, max_size=3)))}</devices>",
    ]
    separator = draw(st.sampled_from(["", "\n  ", " ", "\n\t", "<!-- <features/> -->", "\r\n"]))
    return domain(separator.join(draw(st.permutations(parts))))


# What it says


@pytest.mark.parametrize(
    ("inside", "state"),
    [
        ("", ABSENT),
        ("<features/>", ABSENT),
        ("<features><acpi/></features>", ABSENT),
        ("<features><pmu/></features>", ON),
        ("<features><pmu state='on'/></features>", ON),
        ("<features><acpi/><pmu state='off'/></features>", OFF),
        ("<features xmlns='urn:another'><pmu state='off'/></features>", ABSENT),
        ("<metadata><features><pmu state='off'/></features></metadata>", ABSENT),
        ("<cpu><features><pmu state='off'/></features></cpu>", ABSENT),
        ("<features><kvm><pmu state='off'/></kvm></features>", ABSENT),
        ("<description>&lt;features&gt;&lt;pmu state='off'/&gt;</description>", ABSENT),
    ],
)
def test_element_is_that_of_the_domains_own_features(inside: str, state: str) -> None:
    assert pmu_element(domain(inside)) == state


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_definition_says_what_the_audit_reads(name: str) -> None:
    assert pmu_element(RECORDED[name]) == facts.parse(RECORDED[name]).definition.pmu


@given(definitions())
def test_generated_definition_says_what_the_audit_reads(xml: str) -> None:
    assert pmu_element(xml) == facts.parse(xml).definition.pmu


# The edit


@pytest.mark.parametrize(
    ("features", "state", "edited"),
    [
        ("", OFF, "  <features>\n    <pmu state='off'/>\n  </features>\n"),
        ("  <features/>\n", OFF, "  <features>\n    <pmu state='off'/>\n  </features>\n"),
        ("  <features>\n    <acpi/>\n  </features>\n", OFF, "  <features>\n    <acpi/>\n    <pmu state='off'/>\n  </features>\n"),
        ("  <features>\n    <vmport/>\n  </features>\n", ON, "  <features>\n    <pmu state='on'/>\n    <vmport/>\n  </features>\n"),
        ("  <features>\n    <pmu/>\n  </features>\n", OFF, "  <features>\n    <pmu state='off'/>\n  </features>\n"),
        ("  <features>\n    <pmu state='off'/>\n  </features>\n", ABSENT, ""),
        ("  <features>\n    <acpi/>\n    <pmu state='off'/>\n  </features>\n", ABSENT, "  <features>\n    <acpi/>\n  </features>\n"),
        ("  <features>\n    <pmu/>\n  </features>\n", ON, "  <features>\n    <pmu/>\n  </features>\n"),
        ("<features><acpi/></features>", OFF, "<features><acpi/><pmu state='off'/></features>"),
    ],
)
def test_edit_writes_what_libvirt_would_print(features: str, state: str, edited: str) -> None:
    assert with_pmu(printed(features), state) == printed(edited)


def test_between_the_features_that_libvirt_prints_before_and_after_it() -> None:
    hyperv = "    <hyperv mode='custom'>\n      <relaxed state='on'/>\n    </hyperv>\n"
    around = (f"  <features>\n    <acpi/>\n{hyperv}", "    <smm state='on'/>\n    <ioapic driver='kvm'/>\n  </features>\n")
    assert with_pmu(printed("".join(around)), OFF) == printed("    <pmu state='off'/>\n".join(around))


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("state", STATES)
def test_recorded_definition_is_edited_and_restored_to_the_letter(name: str, state: str) -> None:
    xml = RECORDED[name]
    edited = with_pmu(xml, state)
    assert pmu_element(edited) == state
    assert with_pmu(edited, pmu_element(xml)) == xml


def common(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(definitions(), st.sampled_from(STATES))
def test_edit_says_the_state_and_touches_nothing_else(xml: str, state: str) -> None:
    edited = with_pmu(xml, state)
    assert pmu_element(edited) == state
    assert with_pmu(edited, state) == edited
    # One run of characters was replaced, and neither the old nor the new one holds more than <features> with <pmu>.
    start = common(xml, edited)
    end = common(xml[start:][::-1], edited[start:][::-1])
    for text in (xml, edited):
        changed = text[start : len(text) - end]
        assert set("".join(changed.split())) <= set("<features><pmu state='onf'/></features>\""), changed


@given(definitions(), st.sampled_from([ON, OFF]))
def test_undo_gives_the_text_back_where_the_element_was_absent(xml: str, state: str) -> None:
    if pmu_element(xml) == ABSENT and "<features/>" not in xml:
        assert with_pmu(with_pmu(xml, state), ABSENT) == xml


@given(definitions(), st.sampled_from(STATES))
def test_edit_is_found_to_differ_in_nothing_else_by_another_parser(xml: str, state: str) -> None:
    def without_pmu(text: str) -> str:
        root = ET.fromstring(text)  # noqa: S314 - the test's own
        for features in root.findall("features"):
            for pmu in features.findall("pmu"):
                features.remove(pmu)
            if not len(features):
                root.remove(features)
        for node in root.iter():
            node.tail = None
        return ET.tostring(root, encoding="unicode")

    # ElementTree keeps the white space between elements in tails, which the edit may add to; all else is compared.
    features = ET.fromstring(xml).find("features")  # noqa: S314 - as above
    if features is None or len(features):
        assert ET.canonicalize(without_pmu(with_pmu(xml, state)), strip_text=True) == ET.canonicalize(without_pmu(xml), strip_text=True)


def test_prefixes_comments_and_quotes_stay_as_they_are() -> None:
    xml = """<?xml version="1.0"?><!-- here --><domain  type="kvm" xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'
    ><os/><q:commandline><q:arg  value='-cpu'/><q:arg value="host,pmu=on"/></q:commandline></domain><!-- there -->"""
    assert with_pmu(xml, OFF) == xml.replace("<os/>", "<os/><features><pmu state='off'/></features>")


def test_state_that_is_none_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="'OFF': expected one of on, off, absent"):
        with_pmu(domain(), "OFF")


# What proves it


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<features><acpi/><pmu state='on'/></features>", "<features><acpi/></features>"),
        ("<features><pmu/></features>", ""),
        ("<features><acpi/><apic/></features>", "<features>\n<apic/><pmu/>\n <acpi/></features>"),
        ("<a b='1' c='2'/>", "\n<a c=\"2\" b='1'></a>\n"),
        ("<x:a xmlns:x='urn:x'/>", "<a xmlns='urn:x'/>"),
        ("<title>&#60;</title>", "<title><![CDATA[<]]></title>"),
    ],
)
def test_only_pmu_and_what_libvirt_prints_anew_may_differ(before: str, after: str) -> None:
    assert differs_only_in_pmu(domain(before), domain(after))
    assert where_they_differ(domain(before), domain(after)) == ""


@pytest.mark.parametrize(
    ("before", "after", "where"),
    [
        ("<memory>1</memory>", "<memory>2</memory>", "domain/memory"),
        ("<memory unit='KiB'>1</memory>", "<memory unit='MiB'>1</memory>", "domain/memory"),
        ("<title>a</title>", "<title>a </title>", "domain/title"),
        ("<title> </title>", "<title/>", "domain/title"),
        ("<a/><b/>", "<b/><a/>", "domain/b"),
        ("<a><b/></a>", "<a/><b/>", "domain/a/b"),
        ("<a/>", "<a/><a/>", "domain/a"),
        ("<a/>", "<b/><a/>", "domain/b"),
        ("<b/><a/>", "<a/>", "domain/b"),
        ("<a/>", "<a xmlns='urn:a'/>", "domain/a"),
        ("<features><acpi/></features>", "<features><pmu/></features>", "domain/features"),
        ("<features><hyperv><a/><b/></hyperv></features>", "<features><hyperv><b/><a/></hyperv></features>", "domain/features/hyperv/b"),
        ("<metadata><pmu/></metadata>", "<metadata/>", "domain/metadata/pmu"),
        ("<cpu><pmu/></cpu>", "<cpu/>", "domain/cpu/pmu"),
        ("<metadata><a><!-- b --></a></metadata>", "<metadata><a/></metadata>", "domain/metadata/a"),
        ("<metadata><a><?b c?></a></metadata>", "<metadata><a><?b d?></a></metadata>", "domain/metadata/a"),
        ("<devices><graphics passwd='a'/></devices>", "<devices><graphics/></devices>", "domain/devices/graphics"),
    ],
)
def test_anything_else_is_a_difference_and_is_named(before: str, after: str, where: str) -> None:
    assert not differs_only_in_pmu(domain(before), domain(after))
    assert where_they_differ(domain(before), domain(after)) == where


@given(definitions(), definitions())
def test_fingerprint_tells_definitions_apart_as_the_comparison_does(one: str, other: str) -> None:
    one, other = without_secrets(one), without_secrets(other)
    same = differs_only_in_pmu(one, other) and pmu_element(one) == pmu_element(other)
    assert (fingerprint(one) == fingerprint(other)) == same


@given(definitions(), st.sampled_from(STATES), st.sampled_from(STATES))
def test_fingerprint_is_that_of_the_state_and_not_of_the_way_to_it(xml: str, one: str, other: str) -> None:
    assert fingerprint(with_pmu(with_pmu(xml, one), other)) == fingerprint(with_pmu(xml, other))


def test_fingerprint_stays_the_same_in_later_versions() -> None:
    expected = "sha256:44808ad86e938c87e182398e1405d9a2f40745a908538c9cef3b8984fcc309ac"
    assert fingerprint(printed("  <features>\n    <pmu state='off'/>\n  </features>\n")) == expected


def test_diff_shows_features_and_nothing_else() -> None:
    before = printed("  <features>\n    <acpi/>\n  </features>\n").replace("'s&lt;3&apos;'", "'secret'")
    assert features_diff(before, with_pmu(before, OFF), "web-1") == (
        "--- web-1 before\n+++ web-1 after\n@@ -1,3 +1,4 @@\n   <features>\n     <acpi/>\n+    <pmu state='off'/>\n   </features>\n"
    )
    assert features_diff(before, before, "web-1") == ""


# Secrets

DISK = "<disk>\n<source protocol='https'>\n<host name='h'/>{}\n</source>\n</disk>"


@pytest.mark.parametrize(
    ("inside", "masked"),
    [
        ("<graphics type='vnc' passwd='a' passwdValidTo='b'/>", "<graphics type='vnc' passwdValidTo='b'/>"),
        ('<graphics listen=" passwd=\'a\' >"\n\tpasswd = "it\'s > this" />', "<graphics listen=\" passwd='a' >\" />"),
        (DISK.format("\n<cookies>\n<cookie name='a'>b</cookie>\n</cookies>"), DISK.format("")),
        ("<disk><source><cookies/></source><backingStore><source><cookies>a</cookies></source></backingStore></disk>",
         "<disk><source></source><backingStore><source></source></backingStore></disk>"),
        ("<panic passwd='a'/><cookies/>", "<panic passwd='a'/><cookies/>"),
    ],
)  # fmt: skip
def test_secrets_of_devices_go_and_nothing_else_does(inside: str, masked: str) -> None:
    xml, expected = (domain(f"<metadata><graphics passwd='a'/></metadata><devices>{text}</devices>") for text in (inside, masked))
    assert without_secrets(xml) == expected


@given(definitions())
def test_definition_without_secrets_has_the_same_fingerprint(xml: str) -> None:
    masked = without_secrets(xml)
    assert without_secrets(masked) == masked
    assert fingerprint(masked) == fingerprint(xml)


def test_fingerprint_of_another_password_is_the_same() -> None:
    assert len({fingerprint(domain(f"<devices><graphics passwd='{password}'/></devices>")) for password in ("a", "b")}) == 1


# Owners

NOVA = "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/{}'/>"


@pytest.mark.parametrize(
    ("inside", "owner"),
    [
        ("<metadata/>", None),
        ("<metadata><l:libosinfo xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'/></metadata>", None),
        ("<metadata><c:data xmlns:c='https://github.com/cockpit-project/cockpit-machines'/></metadata>", None),
        ("<metadata><e:note xmlns:e='urn:exitguard:domain:1'/></metadata>", None),
        ("<metadata><e:locked xmlns:e='urn:exitguard:domain:1'/></metadata>", "locked by an operator's mark"),
        (f"<metadata>{NOVA.format('1.0')}</metadata>", "OpenStack Nova owns"),
        (f"<metadata>{NOVA.format('1.1')}</metadata>", "OpenStack Nova owns"),
        ("<metadata><o:vm xmlns:o='http://ovirt.org/vm/1.0'/></metadata>", "oVirt owns"),
        ("<metadata><k:kv xmlns:k='http://kubevirt.io'/></metadata>", "KubeVirt owns"),
        ("<metadata><o:vm xmlns:o='http://opennebula.org/xmlns/libvirt/1.0'/></metadata>", "OpenNebula owns"),
        ("<metadata><s:vm xmlns:s='urn:ours'/></metadata>", "an unknown manager owns"),
        ("<metadata><vm/></metadata>", "an unknown manager owns"),
        ("<sysinfo><system><entry name='product'>OpenStack Foundation </entry></system></sysinfo>", "OpenStack Nova owns"),
        ("<sysinfo><system><entry name='product'>CloudStack KVM Hypervisor</entry></system></sysinfo>", "Apache CloudStack owns"),
        ("<sysinfo><system><entry name='product'>Acme</entry></system></sysinfo>", None),
        (f"<devices>{NOVA.format('1.1')}</devices>", None),
    ],
)
def test_owner_is_the_one_that_the_audit_finds(inside: str, owner: str | None) -> None:
    reason = why_not_ours(domain(inside))
    assert reason is None if owner is None else reason is not None and reason.startswith(owner)
    parsed = facts.parse(domain(inside))
    assert (reason is None) == (parsed.owner.kind is OwnerKind.LIBVIRT and not parsed.locked)


@pytest.mark.parametrize("name", RECORDED)
def test_owner_of_a_recorded_definition_is_the_one_that_the_audit_finds(name: str) -> None:
    assert (why_not_ours(RECORDED[name]) is None) == (facts.parse(RECORDED[name]).owner.kind is OwnerKind.LIBVIRT)


def test_marks_are_those_of_the_audit() -> None:
    assert domain_xml.LOCK_NAMESPACE == facts.LOCK_NAMESPACE
    assert domain_xml._NOTES == facts._NOTES
    assert domain_xml._SYSINFO_MANAGERS == facts._SYSINFO_MANAGERS
    nova = {namespace.strip("{}").rpartition("/")[0] + "/": "OpenStack Nova" for namespace in facts._NOVA}
    assert nova | facts._MANAGERS == domain_xml._MANAGERS


# Hostile text


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "not well-formed"),
        ("<domain>", "not well-formed"),
        ("<domain/><domain/>", "not well-formed"),
        ("<domain>\0</domain>", "not well-formed"),
        ("<domain>&bomb;</domain>", "not well-formed"),
        ("<domain>\ud800</domain>", "half a character"),
        ("<x:domain/>", "not well-formed"),
        ("<domain xmlns='urn:a'/>", "where <domain> was expected"),
        ("<domstatus><domain/></domstatus>", "<domstatus> where <domain> was expected"),
        ("<!DOCTYPE domain><domain/>", "a document type"),
        ("<!DOCTYPE d [<!ENTITY a 'b'><!ENTITY c '&a;&a;'>]><domain>&c;</domain>", "a document type"),
        ("<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>", "a document type"),
        (domain("<a>" * LIMIT_DEPTH + "</a>" * LIMIT_DEPTH), "nested more than 256 deep"),
        (domain("<a>" * 100_000), "nested more than 256 deep"),
        (domain("<a/>" * LIMIT_ELEMENTS), "more than 100000 elements"),
        (domain("\u00e4" * (LIMIT_BYTES // 2)), "bytes of XML, expected at most 8388608"),
    ],
    ids=range(16),
)
@pytest.mark.parametrize("function", [pmu_element, fingerprint, without_secrets, why_not_ours, lambda xml: with_pmu(xml, OFF)])
def test_hostile_text_is_refused_with_a_sentence(function: object, xml: str, reason: str) -> None:
    assert callable(function)
    with pytest.raises(DomainXmlRefusedError, match=reason):
        function(xml)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        ("<features><pmu/><pmu state='off'/></features>", "2 <pmu> elements"),
        ("<features/><features><pmu/></features>", "2 <features> elements"),
        ("<features><pmu state='maybe'/></features>", "<pmu state='maybe'>: expected on or off"),
        ("<features><pmu state='off' model='x'/></features>", "<pmu> with more than its state"),
        ("<features><pmu state='off'><counters/></pmu></features>", "<pmu> with more than its state"),
        ("<features policy='x'/>", "<features> with attributes, text or comments"),
        ("<features>text</features>", "<features> with attributes, text or comments"),
        ("<features><!-- comment --></features>", "<features> with attributes, text or comments"),
    ],
)
def test_what_libvirt_never_writes_is_not_edited(inside: str, reason: str) -> None:
    for function in (pmu_element, lambda xml: with_pmu(xml, OFF)):
        with pytest.raises(DomainXmlRefusedError, match=reason):
            function(domain(inside))


def test_domain_with_nothing_in_it_is_not_edited() -> None:
    with pytest.raises(DomainXmlRefusedError, match="an empty <domain>"):
        with_pmu("<domain type='kvm'/>", OFF)


def test_as_deep_and_as_large_as_the_limits_is_still_edited() -> None:
    deep = domain("<a>" * (LIMIT_DEPTH - 1) + "</a>" * (LIMIT_DEPTH - 1))
    large = domain(f"<description>{'x' * (LIMIT_BYTES - 200)}</description>")
    for xml in (deep, large):
        assert with_pmu(with_pmu(xml, OFF), ABSENT) == xml
        assert fingerprint(xml).startswith("sha256:")


@given(st.text(max_size=200) | st.text("<>/ pmu'\"=!?[]-&;", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for xml in (text, domain(text)):
        try:
            edited = with_pmu(xml, OFF)
        except DomainXmlRefusedError:
            continue
        assert differs_only_in_pmu(xml, edited)


# The same file on the hosts


def test_module_of_the_hosts_is_this_file() -> None:
    linked = REPOSITORY / "playbooks" / "module_utils" / "exitguard_domain_xml.py"
    assert linked.read_bytes() == Path(domain_xml.__file__).read_bytes()
    assert not linked.is_symlink() or not linked.readlink().is_absolute()


def test_file_needs_python_3_8_and_its_standard_library_only() -> None:
    tree = ast.parse(Path(domain_xml.__file__).read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
