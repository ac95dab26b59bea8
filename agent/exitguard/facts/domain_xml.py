"""A domain XML, read for what decides the guest PMU, for who owns it, and for Nova's metadata. Pure.

The text is partly a tenant's (names, metadata) and may come from a file tree that is not ours: it is bounded in size, no
document type is accepted (so no entity is ever expanded), and whatever does not fit raises `DomainXmlError`.
Format: https://libvirt.org/formatdomain.html; Nova's metadata: nova/virt/libvirt/config.py, class LibvirtConfigGuestMetaNovaInstance.
"""

import re
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID
from xml.etree import ElementTree as ET

from exitguard.model.domain import DomainDefinition, NovaInstance, Owner, OwnerKind
from exitguard.model.pmu import PmuElement

#: libvirt's own bound on one string in its protocol (REMOTE_STRING_MAX in src/remote/remote_protocol.x).
LIMIT_CHARACTERS = 4 << 20
_MAX_NAME = 4096
_MAX_ID = 255  # of a flavor or a project in Nova's database
_MAX_OVERRIDES = 8
#: Two texts each of four thousand domains, some 30 MB at worst; and only such texts as libvirt writes, not what a stranger's file may hold.
_MAX_REMEMBERED = 8_192
_REMEMBERED_CHARACTERS = 1 << 16

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_NOVA = ("{http://openstack.org/xmlns/libvirt/nova/1.1}", "{http://openstack.org/xmlns/libvirt/nova/1.0}")

#: An operator's mark: `virsh metadata DOMAIN urn:exitguard:domain:1 --key exitguard --set '<locked/>' --config`
LOCK_NAMESPACE = "urn:exitguard:domain:1"

#: Managers that claim a domain by a metadata namespace of their own (prefixes, as found in those projects' domain XML).
_MANAGERS = {
    "http://ovirt.org/": "oVirt",
    "http://kubevirt.io": "KubeVirt",
    "http://opennebula.org/": "OpenNebula",
    "http://www.proxmox.com/": "Proxmox",
    "https://wiki.gnome.org/Apps/Boxes": "GNOME Boxes",
}
#: Metadata that tools leave without owning the definition afterwards.
_NOTES = ("http://libosinfo.org/", "https://github.com/cockpit-project/", LOCK_NAMESPACE)
#: Managers that leave no metadata, but a manufacturer or product in <sysinfo>.
_SYSINFO_MANAGERS = {"openstack foundation": "OpenStack Nova", "cloudstack kvm hypervisor": "Apache CloudStack", "ovirt": "oVirt"}


class DomainXmlError(ValueError):
    """The text is not a domain XML that this program reads; the message says why."""


@dataclass(frozen=True)
class ParsedDomain:
    """One domain XML."""

    uuid: str
    name: str
    definition: DomainDefinition
    owner: Owner
    nova: NovaInstance | None
    locked: bool
    #: The numeric user of <seclabel model='dac'>, which is the user that the QEMU process runs as.
    process_uid: int | None


#: What texts say that were read before, by their digest: some 4 KB a record.
_remembered: dict[bytes, ParsedDomain] = {}


def parse(text: str) -> ParsedDomain:
    """One <domain>, alone or in the <domstatus> that libvirt keeps of a running one. Raises DomainXmlError.

    A text that was read before is not read again: from one audit of a process to its next, few domains change.
    """
    digest = blake2b(text.encode("utf-8", "surrogatepass")).digest()
    parsed = _remembered.get(digest)
    if parsed is None:
        parsed = _parse(text)
        if len(text) <= _REMEMBERED_CHARACTERS:
            if len(_remembered) >= _MAX_REMEMBERED:
                _remembered.clear()
            _remembered[digest] = parsed
    return parsed


def _parse(text: str) -> ParsedDomain:
    root = parse_element(text)
    if root.tag != "domstatus":
        return read_domain(root)
    domain = root.find("domain")
    if domain is None:
        raise DomainXmlError("a <domstatus> without a <domain>")
    return read_domain(domain)


def parse_element(text: str) -> ET.Element:
    """The root element of bounded XML without a document type. Raises DomainXmlError."""
    if len(text) > LIMIT_CHARACTERS:
        raise DomainXmlError(f"{len(text)} characters of XML, expected at most {LIMIT_CHARACTERS}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DomainXmlError("the XML declares a document type, which libvirt never writes: refused")
    try:
        return ET.fromstring(text)  # noqa: S314 - without a document type there is no entity to expand
    except ET.ParseError as error:
        raise DomainXmlError(f"not well-formed XML: {error}") from None
    except ValueError as error:  # lone surrogates, NUL
        raise DomainXmlError(f"not XML text: {error}") from None


def read_domain(root: ET.Element) -> ParsedDomain:
    """What a parsed <domain> says. Raises DomainXmlError for another element, or one without a name and a uuid."""
    if root.tag != "domain":
        raise DomainXmlError(f"<{root.tag[:80]}> where <domain> was expected")
    parts: dict[str, ET.Element] = {}
    for child in root:
        parts.setdefault(child.tag, child)
    name = _text(parts.get("name"))
    if not name or len(name) > _MAX_NAME:
        raise DomainXmlError("no <name>, or one that is longer than any domain name")
    try:
        uuid = str(UUID(_text(parts.get("uuid"))))
    except ValueError:
        raise DomainXmlError(f"domain {name[:80]!r} has no well-formed <uuid>") from None
    metadata = parts.get("metadata")
    nova = _read_nova(metadata)
    return ParsedDomain(
        uuid=uuid,
        name=name,
        definition=_read_definition(root, parts),
        owner=_read_owner(metadata, parts.get("sysinfo"), nova),
        nova=nova,
        locked=metadata is not None and any(child.tag == f"{{{LOCK_NAMESPACE}}}locked" for child in metadata),
        process_uid=_read_process_uid(root),
    )


def _read_definition(root: ET.Element, parts: dict[str, ET.Element]) -> DomainDefinition:
    os_type = parts["os"].find("type") if "os" in parts else None
    cpu = parts.get("cpu")
    mode = None
    if cpu is not None:
        # formatdomain: a <cpu> with a model and no mode is custom; one with a topology only leaves the model to QEMU.
        mode = cpu.get("mode") or ("custom" if cpu.find("model") is not None else None)
    devices = parts.get("devices")
    security = parts.get("launchSecurity")
    return DomainDefinition(
        type=root.get("type", ""),
        arch=os_type.get("arch", "") if os_type is not None else "",
        machine=os_type.get("machine", "") if os_type is not None else "",
        emulator=_text(devices.find("emulator")) or None if devices is not None else None,
        cpu_mode=mode,
        cpu_model=_text(cpu.find("model")) or None if cpu is not None else None,
        pmu=_read_pmu(parts.get("features")),
        launch_security=security.get("type") if security is not None else None,
        overrides=_read_overrides(parts.get(f"{_QEMU}commandline")),
    )


def _read_pmu(features: ET.Element | None) -> PmuElement:
    pmu = features.find("pmu") if features is not None else None
    if pmu is None:
        return PmuElement.ABSENT
    state = pmu.get("state", "on")  # <pmu/> means on (formatdomain, since 1.2.12)
    if state not in ("on", "off"):
        raise DomainXmlError(f"<pmu state={state[:40]!r}>: expected on or off")
    return PmuElement(state)


def _read_overrides(command_line: ET.Element | None) -> tuple[str, ...]:
    """The arguments of <qemu:commandline> that can change the CPU behind libvirt's back, with their values."""
    if command_line is None:
        return ()
    arguments = [argument.get("value", "") for argument in command_line.findall(f"{_QEMU}arg")]
    found = []
    for index, argument in enumerate(arguments):
        value = arguments[index + 1] if index + 1 < len(arguments) else ""
        option = argument.replace("--", "-", 1) if argument.startswith("--") else argument
        if option in ("-cpu", "-readconfig") or (option == "-global" and "pmu" in value):
            found.append(f"{option} {value}"[:200])
    return tuple(found[:_MAX_OVERRIDES])


def _read_owner(metadata: ET.Element | None, sysinfo: ET.Element | None, nova: NovaInstance | None) -> Owner:
    if nova is not None:
        return Owner(kind=OwnerKind.NOVA, name=f"Nova {nova.version}".strip())
    strangers = []
    for child in metadata if metadata is not None else ():
        namespace = child.tag[1:].partition("}")[0] if child.tag.startswith("{") else child.tag
        manager = next((name for prefix, name in _MANAGERS.items() if namespace.startswith(prefix)), None)
        if manager is not None:
            return Owner(kind=OwnerKind.OTHER, name=manager)
        if not namespace.startswith(_NOTES):
            strangers.append(namespace[:120])
    for entry in sysinfo.iter("entry") if sysinfo is not None else ():
        manager = _SYSINFO_MANAGERS.get(_text(entry).lower())
        if manager is not None:
            # Nova always writes its metadata: its name in sysinfo alone means that something is missing or imitated.
            return Owner(kind=OwnerKind.OTHER, name=f"{manager} (by its sysinfo)")
    if strangers:
        return Owner(kind=OwnerKind.UNKNOWN, name=f"metadata of an unknown manager: {strangers[0]}")
    return Owner(kind=OwnerKind.LIBVIRT, name="libvirt")


def _read_nova(metadata: ET.Element | None) -> NovaInstance | None:
    if metadata is None:
        return None
    for ns in _NOVA:
        instance = metadata.find(f"{ns}instance")
        if instance is not None:
            break
    else:
        return None
    flavor = instance.find(f"{ns}flavor")
    package = instance.find(f"{ns}package")
    specs = instance.find(f".//{ns}extraSpecs")
    properties = instance.find(f".//{ns}image/{ns}properties")
    # The flavor's id and its extra specs came with the same release (32.0.0): an id without specs is a silent flavor.
    flavor_id = flavor.get("id") if flavor is not None else None
    stores_specs = specs is not None or flavor_id is not None
    return NovaInstance(
        version=package.get("version", "")[:64] if package is not None else "",
        name=_text(instance.find(f"{ns}name"))[:_MAX_NAME],
        flavor=flavor.get("name", "")[:_MAX_NAME] if flavor is not None else "",
        project=_project(instance, ns),
        created_at=_created_at(_text(instance.find(f"{ns}creationTime"))),
        flavor_hw_pmu=_named(specs, f"{ns}extraSpec", "hw:pmu") if stores_specs else None,
        image_hw_pmu=_named(properties, f"{ns}property", "hw_pmu") if properties is not None else None,
        flavor_id=flavor_id[:_MAX_ID] if flavor_id is not None else None,
        image=_image(instance.find(f"{ns}root")),
    )


def _project(instance: ET.Element, ns: str) -> str | None:
    project = instance.find(f"{ns}owner/{ns}project")
    uuid = project.get("uuid") if project is not None else None
    return uuid[:_MAX_ID] if uuid is not None else None


def _image(root: ET.Element | None) -> str | None:
    """The image below the root disk. Of an instance that boots from a volume Nova may name one too, which is not the instance's."""
    if root is None or root.get("type") != "image":
        return None
    try:
        return str(UUID(root.get("uuid", "")))
    except ValueError:
        return None


def _named(container: ET.Element | None, tag: str, name: str) -> str:
    """The text of the entry called `name`, "" where the container is silent."""
    for entry in container if container is not None else ():
        if entry.tag == tag and entry.get("name") == name:
            return _text(entry)[:64] or "empty"
    return ""


def _created_at(text: str) -> str | None:
    """Nova writes UTC as `2026-11-22 15:39:25` (time.gmtime)."""
    return f"{text[:10]}T{text[11:]}.000000Z" if re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text, re.ASCII) else None


def _read_process_uid(root: ET.Element) -> int | None:
    for label in root.findall("seclabel"):
        if label.get("model") == "dac":
            # `+64055:+64055`: the plus sign marks numbers (formatdomain, security label).
            match = re.match(r"\+?(\d{1,10}):", _text(label.find("label")))
            if match:
                return int(match[1])
    return None


def _text(element: ET.Element | None) -> str:
    return (element.text or "").strip() if element is not None else ""
