"""Domains as libvirt keeps them on disk, for a host's file tree (`--sysroot`) where no daemon can be asked.

Definitions: /etc/libvirt/qemu/NAME.xml. Running domains: /run/libvirt/qemu/NAME.xml, a <domstatus> around the live <domain>
(src/conf/virdomainobjlist.c). Managed saves: /var/lib/libvirt/qemu/save/NAME.save (src/qemu/qemu_saveimage.h).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from exitguard.facts import domain_xml
from exitguard.facts.domain_xml import LIMIT_CHARACTERS, DomainXmlError
from exitguard.facts.libvirt import LibvirtReading, RawDomain
from exitguard.facts.tree import HostTree, unlock_for, why
from exitguard.model.host import LibvirtFacts
from exitguard.model.record import Observed, seen, unseen

DEFINITIONS = "/etc/libvirt/qemu"
RUNNING = "/run/libvirt/qemu"
SAVES = "/var/lib/libvirt/qemu/save"

#: struct _virQEMUSaveHeader: magic, version, length of what follows, was_running, format, cookie offset, 14 unused words.
#: What follows is the XML and a NUL, perhaps a <cookie> and a NUL, and padding (libvirt 9.0 writes all of it).
_SAVE_HEADER = struct.Struct("=16s5I56x")
_SAVE_MAGICS = (b"LibvirtQemudSave", b"LibvirtQemudPart")


def read_libvirt_files(tree: HostTree) -> LibvirtReading:
    """The domains of a file tree. What libvirt's programs would add (versions, capabilities) is unseen."""
    reason = "a file tree has no daemon to ask"
    definitions = _xml_names(tree, DEFINITIONS)
    listing: Observed[bool] = (
        seen(DEFINITIONS, True)
        if definitions.value is not None
        else Observed(source=definitions.source, reason=definitions.reason, unlock=definitions.unlock)
    )
    return LibvirtReading(
        facts=LibvirtFacts(daemon_version=unseen(DEFINITIONS, reason), driver=unseen(DEFINITIONS, reason), listing=listing),
        domains=_read_domains(tree, definitions.value or ()),
    )


def _xml_names(tree: HostTree, folder: str) -> Observed[tuple[str, ...]]:
    names = tree.names(folder)
    if names.value is None:
        return names
    return seen(folder, tuple(name.removesuffix(".xml") for name in names.value if name.endswith(".xml")))


def _read_domains(tree: HostTree, defined: tuple[str, ...]) -> Iterator[RawDomain]:
    running = _xml_names(tree, RUNNING)
    saves = tree.names(SAVES)
    files_of: dict[str, str] = {}
    for name in sorted({*defined, *(running.value or ())}):
        domain = _read_domain(tree, name, defined=name in defined, running=running, saves=saves)
        first = files_of.setdefault(domain.uuid, name)
        yield domain if first == name else _without_uuid(domain, f"its uuid is also that of {first}.xml")


def _without_uuid(domain: RawDomain, reason: str) -> RawDomain:
    """A domain that cannot be told from another one: it is named, and nothing is concluded from its files."""

    def hidden(xml: Observed[str] | None) -> Observed[str] | None:
        return None if xml is None else unseen(xml.source, reason)

    return replace(domain, uuid=f"unreadable:{domain.name}", definition_xml=hidden(domain.definition_xml), run_xml=hidden(domain.run_xml))


def _read_domain(
    tree: HostTree, name: str, *, defined: bool, running: Observed[tuple[str, ...]], saves: Observed[tuple[str, ...]]
) -> RawDomain:
    definition = _read_xml(tree, f"{DEFINITIONS}/{name}.xml") if defined else None
    active: Observed[bool]
    managed_save: Observed[bool]
    run: Observed[str] | None = None
    if running.value is None:
        active = Observed(source=RUNNING, reason=running.reason, unlock=running.unlock)
        run = Observed(source=RUNNING, reason=running.reason, unlock=running.unlock)
    else:
        active = seen(RUNNING, name in running.value)
        if active.value:
            run = _read_xml(tree, f"{RUNNING}/{name}.xml")
    if saves.value is None:
        managed_save = Observed(source=SAVES, reason=saves.reason, unlock=saves.unlock)
        if active.value is False:
            run = Observed(source=SAVES, reason=saves.reason, unlock=saves.unlock)
    else:
        managed_save = seen(SAVES, f"{name}.save" in saves.value)
        if managed_save.value and active.value is False:
            run = _read_save(tree, f"{SAVES}/{name}.save")
    return RawDomain(
        uuid=_uuid(definition, run, name), name=name, active=active, managed_save=managed_save, definition_xml=definition, run_xml=run
    )


def _uuid(definition: Observed[str] | None, run: Observed[str] | None, name: str) -> str:
    for xml in (definition, run):
        if xml is not None and xml.value is not None:
            try:
                return domain_xml.parse(xml.value).uuid
            except DomainXmlError:  # whoever parses it for its facts reports why
                continue
    return f"unreadable:{name}"


def _read_xml(tree: HostTree, path: str) -> Observed[str]:
    return tree.read_text(path, limit_bytes=LIMIT_CHARACTERS)


@dataclass(frozen=True)
class SaveHeader:
    """The head of a managed save: how many bytes follow it before QEMU's own data."""

    data_bytes: int


def parse_save_header(head: bytes) -> SaveHeader:
    """The first 92 bytes of a managed save. Raises DomainXmlError for anything else."""
    if len(head) < _SAVE_HEADER.size:
        raise DomainXmlError("shorter than the header of a libvirt save file")
    magic, _version, data_bytes, *_ = _SAVE_HEADER.unpack_from(head)
    if magic not in _SAVE_MAGICS:
        raise DomainXmlError("not a libvirt save file")
    if data_bytes > LIMIT_CHARACTERS:
        raise DomainXmlError(f"{data_bytes} bytes of XML, expected at most {LIMIT_CHARACTERS}")
    return SaveHeader(data_bytes)


def _read_save(tree: HostTree, path: str) -> Observed[str]:
    try:
        with tree.open(path) as file:
            header = parse_save_header(file.read(_SAVE_HEADER.size))
            text = file.read(header.data_bytes).partition(b"\x00")[0].decode("utf-8", "replace")
    except OSError as error:
        return unseen(path, why(error), unlock=unlock_for(error))
    except DomainXmlError as error:
        return unseen(path, str(error))
    return seen(path, text)
