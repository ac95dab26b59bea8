"""Who a host is: its name, its machine-id, its DMI UUID, and an id derived from them while no store has minted one."""

import re
import uuid

from exitguard.facts.tree import HostTree, one_line, unseen_like
from exitguard.model.record import Observed, seen, unseen

#: A random UUID of this project's own; it makes derived ids differ from other programs' and says nothing itself.
_NAMESPACE = uuid.UUID("6f1d0e0c-5b1e-4a53-9c57-0f6b7f2f3a94")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MACHINE_ID_PATH = "/etc/machine-id"
_DMI_UUID_PATH = "/sys/class/dmi/id/product_uuid"
#: The running kernel's, then the configured one (hostname(5)): all that a file tree without /proc has.
_HOSTNAME_PATHS = ("/proc/sys/kernel/hostname", "/etc/hostname")
#: What firmware says where nobody gave the board an identity (SMBIOS 7.2.1: all zeros is "not set", all ones "not present").
_MEANINGLESS_UUIDS = frozenset({"00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"})


def read_hostname(tree: HostTree) -> Observed[str]:
    """The host's name as its kernel has it, else as /etc/hostname configures it."""
    first = tree.read_text(_HOSTNAME_PATHS[0])
    text = first if first.known else tree.read_text(_HOSTNAME_PATHS[1])
    return parse_hostname(text.source, text.value) if text.value is not None else unseen_like(first)


def parse_hostname(source: str, text: str) -> Observed[str]:
    """The first line that is not a comment (hostname(5))."""
    lines = (one_line(line, limit_characters=64) for line in text.splitlines())
    name = next((line for line in lines if line and not line.startswith("#")), "")
    return seen(source, name) if name not in {"", "(none)"} else unseen(source, "no hostname is set")


def read_machine_id(tree: HostTree) -> Observed[str]:
    """The machine-id: 32 hex digits (machine-id(5)). It identifies the host to whoever sees it: a fact, never a label."""
    text = tree.read_text(_MACHINE_ID_PATH)
    return parse_machine_id(text.value) if text.value is not None else unseen_like(text)


def parse_machine_id(text: str) -> Observed[str]:
    machine_id = text.strip().lower()
    if machine_id in {"", "uninitialized"}:
        return unseen(_MACHINE_ID_PATH, "not initialised yet: run systemd-machine-id-setup")
    if not _MACHINE_ID.fullmatch(machine_id) or set(machine_id) == {"0"}:
        return unseen(_MACHINE_ID_PATH, "malformed: expected 32 hex digits that are not all zero")
    return seen(_MACHINE_ID_PATH, machine_id)


def read_dmi_uuid(tree: HostTree) -> Observed[str]:
    """The UUID that the firmware gives the machine; the kernel shows it to root only."""
    text = tree.read_text(_DMI_UUID_PATH)
    return parse_dmi_uuid(text.value) if text.value is not None else unseen_like(text)


def parse_dmi_uuid(text: str) -> Observed[str]:
    dmi_uuid = text.strip().lower()
    if not _UUID.fullmatch(dmi_uuid):
        return unseen(_DMI_UUID_PATH, "malformed: expected a UUID")
    if dmi_uuid in _MEANINGLESS_UUIDS:
        return unseen(_DMI_UUID_PATH, "the firmware was given none")
    return seen(_DMI_UUID_PATH, dmi_uuid)


def provisional_host_id(machine_id: str | None, hostname: str | None = None) -> str:
    """A UUID for a host that no store has given one: the same for the same machine-id, which it does not reveal.

    Without a machine-id it is derived from the hostname, and without either it is the same for every such host.
    """
    if machine_id is not None:
        return str(uuid.uuid5(_NAMESPACE, f"machine-id {machine_id}"))
    return str(uuid.uuid5(_NAMESPACE, f"hostname {hostname or ''}"))
