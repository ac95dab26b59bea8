# SPDX-License-Identifier: Apache-2.0
"""What the guests of a host use and ask for: definitions, runs and managed saves of all of libvirt's domains; and who else holds a guest.

It only reads, and whatever cannot be read raises `GuestsUnknownError`: a check that saw half of the guests is none. Domain XML is partly a
tenant's text: it is bounded, and no document type is accepted.
"""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

try:
    import libvirt
except ImportError as import_error:
    libvirt = None
    WHY_NO_LIBVIRT = str(import_error)

#: libvirt's own bound on one string in its protocol (REMOTE_STRING_MAX).
_LIMIT_CHARACTERS = 4 << 20
#: How often guests may start, stop or be saved while they are looked at.
_MOST_LOOKS = 5
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_NOVA = ("{http://openstack.org/xmlns/libvirt/nova/1.1}", "{http://openstack.org/xmlns/libvirt/nova/1.0}")
#: The operator's mark on a guest that is to be left alone altogether.
_LOCKED = "{urn:exitguard:domain:1}locked"
#: What Nova takes for true (oslo_utils.strutils.bool_from_string).
_TRUE = ("true", "on", "yes", "1", "t", "y")
_KVM_VM_LINK = "anon_inode:kvm-vm"


class GuestsUnknownError(Exception):
    """The guests of this host cannot be told; the message says why."""


@dataclass(frozen=True)
class Guest:
    """A domain, by all that libvirt keeps of it."""

    uuid: str
    name: str
    active: bool
    #: Why it counts as a guest that asks for the PMU: one reason each.
    asks_for_pmu: tuple[str, ...]
    locked: bool
    #: Whether every text of it says <pmu state='off'/>, so that a host-wide switch takes nothing from it.
    off_everywhere: bool
    #: (architecture, machine type), of each text that names one.
    machines: tuple[tuple[str, str], ...]


def read_guests(uri: str, timeout_seconds: int) -> tuple[Guest, ...]:
    """Every domain at `uri`, over one read-only connection. Raises GuestsUnknownError, after `timeout_seconds` at the latest."""
    if libvirt is None:
        raise GuestsUnknownError(
            f"libvirt-python is missing in {sys.executable} ({WHY_NO_LIBVIRT}): install python3-libvirt for it, or name a Python that "
            "has it by ansible_python_interpreter"
        )
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # its default prints every error
    answer: queue.Queue[Any] = queue.Queue()
    # A call to libvirt can block for good; the thread ends with the process then.
    threading.Thread(target=lambda: answer.put(_outcome(lambda: _read(uri))), name="libvirt", daemon=True).start()
    try:
        guests, problem = answer.get(timeout=timeout_seconds)
    except queue.Empty:
        raise GuestsUnknownError(f"libvirt at {uri} has not answered within {timeout_seconds} seconds") from None
    if problem is not None:
        raise GuestsUnknownError(problem)
    found: tuple[Guest, ...] = guests
    return found


def _outcome(read: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return read(), None
    except GuestsUnknownError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - the thread's outer edge: without an answer the module would wait for it
        return None, f"libvirt's domains cannot be read: {type(error).__name__}: {_words(error)}"


def _read(uri: str) -> tuple[Guest, ...]:
    try:
        connection = libvirt.openReadOnly(uri)
    except libvirt.libvirtError as error:
        raise GuestsUnknownError(f"libvirt at {uri} cannot be asked: {_words(error)}") from None
    try:
        for _ in range(_MOST_LOOKS):
            before = _state(connection)
            texts = {uuid: _texts(domain) for uuid, (domain, _, _) in before.items()}
            # A guest that was saved, started or defined meanwhile may have shown neither its run nor its saved state.
            after = _state(connection)
            if {uuid: entry[1:] for uuid, entry in before.items()} == {uuid: entry[1:] for uuid, entry in after.items()}:
                return tuple(parse_guest(uuid, before[uuid][1] != -1, texts[uuid]) for uuid in sorted(before))
    finally:
        connection.close()
    raise GuestsUnknownError(f"guests started, stopped or were saved in each of {_MOST_LOOKS} looks. Try again when the host is quieter")


def _state(connection: Any) -> dict[str, tuple[Any, int, bool]]:
    """Each domain with its id, which is another in another run, and whether a saved run waits for it."""
    found = {}
    for domain in connection.listAllDomains(0):
        try:
            found[domain.UUIDString()] = (domain, domain.ID(), bool(domain.hasManagedSaveImage(0)))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise GuestsUnknownError(f"domain {domain.name()!r} cannot be read: {_words(error)}") from None
    return found


def _texts(domain: Any) -> tuple[tuple[str, str], ...]:
    """What kind of text it is, and the text."""
    texts = []
    try:
        if domain.hasManagedSaveImage(0):
            texts.append(("managed save", domain.managedSaveGetXMLDesc(0)))
        if domain.isActive():
            texts.append(("run", domain.XMLDesc(0)))
        if domain.isPersistent():
            texts.append(("definition", domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise GuestsUnknownError(f"domain {domain.name()!r} cannot be read: {_words(error)}") from None
    return tuple(texts)


def parse_guest(uuid: str, active: bool, texts: Sequence[tuple[str, str]]) -> Guest:  # noqa: FBT001 - what libvirt says of it
    """One domain, of its texts. Raises GuestsUnknownError for a text that is no domain XML."""
    roots = [(kind, _parse(uuid, text)) for kind, text in texts]
    names = [root.findtext("name", "") for _, root in roots]
    machines = [(element.get("arch", ""), element.get("machine", "")) for _, root in roots for element in root.findall("os/type")]
    return Guest(
        uuid=uuid,
        name=names[0] if names else uuid,
        active=active,
        asks_for_pmu=tuple(f"{reason} in its {kind}" for kind, root in roots for reason in _wishes(root)),
        locked=any(root.find(f"metadata/{_LOCKED}") is not None for _, root in roots),
        off_everywhere=all(_pmu(root) == "off" for _, root in roots),
        machines=tuple(sorted({(arch, machine) for arch, machine in machines if machine})),
    )


def _parse(uuid: str, text: str) -> ET.Element:
    if len(text) > _LIMIT_CHARACTERS or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise GuestsUnknownError(f"domain {uuid} has an XML that libvirt never writes: too long, or with a document type")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a document type there is no entity to expand
    except (ET.ParseError, ValueError) as error:
        raise GuestsUnknownError(f"domain {uuid} has an XML that cannot be read: {error}") from None
    if root.tag != "domain":
        raise GuestsUnknownError(f"domain {uuid}: <{root.tag[:80]}> where <domain> was expected")
    return root


def _pmu(root: ET.Element) -> str:
    """On, off or absent; <pmu/> means on (formatdomain, since 1.2.12)."""
    elements = root.findall("features/pmu")
    if not elements:
        return "absent"
    # Whatever is not plainly off counts as a wish.
    return "off" if all(element.get("state") == "off" for element in elements) else "on"


def _wishes(root: ET.Element) -> Iterator[str]:
    """Why this text asks for the PMU."""
    if _pmu(root) == "on":
        yield "<pmu state='on'/>"
    for namespace in _NOVA:
        for instance in root.findall(f"metadata/{namespace}instance"):
            for specification in instance.iter(f"{namespace}extraSpec"):
                if specification.get("name") == "hw:pmu" and _is_true(specification.text):
                    yield "the flavor's hw:pmu"
            for image_property in instance.iter(f"{namespace}property"):
                if image_property.get("name") == "hw_pmu" and _is_true(image_property.text):
                    yield "the image's hw_pmu"
    for argument in root.findall(f"{_QEMU}commandline/{_QEMU}arg"):
        value = argument.get("value", "")
        # An option file may hold anything, and it may be read by another argument's name for it.
        if re.search(r"\+pmu\b|\bpmu=(on|true|yes|y)\b|^--?readconfig\b", value):
            yield f"<qemu:arg value='{value[:80]}'/>"


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in _TRUE


def read_unmanaged(sysroot: Path, guests: Sequence[Guest]) -> tuple[str, ...]:
    """Processes that hold a KVM guest and run no domain of libvirt's, as `name (pid)`. Raises GuestsUnknownError.

    /proc/<pid>/fd shows who holds one, /sys/kernel/debug/kvm/<pid>-<fd> who made one (virt/kvm/kvm_main.c). A process belongs to a domain
    by the `-uuid` on its command line; where two carry the same, neither does.
    """
    proc = sysroot / "proc"
    holders = _holders(proc) | _makers(sysroot, proc)
    active = {guest.uuid for guest in guests if guest.active}
    domain_of = {pid: _domain_of(proc, pid) for pid in holders}
    claimed = list(domain_of.values())
    strangers = [pid for pid, uuid in domain_of.items() if uuid not in active or claimed.count(uuid) > 1]
    return tuple(f"{_command(proc, pid)} ({pid})" for pid in sorted(strangers))


def _holders(proc: Path) -> set[int]:
    try:
        pids = [int(name) for name in os.listdir(proc) if name.isascii() and name.isdigit()]  # noqa: PTH208 - names
    except OSError as error:
        raise GuestsUnknownError(f"{proc} cannot be read: {error.strerror}") from None
    if not pids:
        raise GuestsUnknownError(f"no process is visible in {proc}")
    found = set()
    for pid in pids:
        folder = f"{proc}/{pid}/fd"
        try:
            descriptors = os.listdir(folder)  # noqa: PTH208 - names
        except PermissionError:
            raise GuestsUnknownError(f"{folder} is closed to this user: run the playbook with become") from None
        except OSError:
            continue  # the process is gone
        if any(_link(f"{folder}/{name}") == _KVM_VM_LINK for name in descriptors):
            found.add(pid)
    return found


def _makers(sysroot: Path, proc: Path) -> set[int]:
    """By debugfs, where it is mounted: it names the thread that made each guest."""
    try:
        names = os.listdir(sysroot / "sys/kernel/debug/kvm")  # noqa: PTH208 - names
    except OSError:
        return set()
    threads = [match.group(1) for match in (re.fullmatch(r"([0-9]+)-[0-9]+", name) for name in names) if match]
    return {_process_of(proc, int(thread)) for thread in threads}


def _process_of(proc: Path, thread: int) -> int:
    match = re.search(r"^Tgid:\s*([0-9]+)$", _content(proc / str(thread) / "status"), re.MULTILINE)
    return int(match.group(1)) if match else thread


def _domain_of(proc: Path, pid: int) -> str | None:
    words = _content(proc / str(pid) / "cmdline").split("\0")
    return words[words.index("-uuid") + 1].lower() if "-uuid" in words[:-1] else None


def _command(proc: Path, pid: int) -> str:
    name = _content(proc / str(pid) / "comm").strip()
    return re.sub(r"[^ -~]", "?", name) or "a process that is not visible here"


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except OSError:
        return ""


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - Path.readlink came with Python 3.9
    except OSError:
        return None  # the descriptor is gone


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a sentence, bounded."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _words(error: BaseException) -> str:
    """The first line of an error's message: libvirt may quote a definition in those after it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
