"""The operator's mark that a host is in maintenance: while the file is there, nothing is planned for the host and nothing is done to it."""

from exitguard.facts.tree import HostTree, one_line

#: Made by an operator, or by the tool that drains the host; its first line says why.
MAINTENANCE_PATH = "/etc/exitguard/maintenance"
_LIMIT_BYTES = 4096


def read_maintenance(tree: HostTree) -> str | None:
    """Why the host is in maintenance; None where it is not. A mark that cannot be read is one all the same."""
    if not tree.exists(MAINTENANCE_PATH):
        return None
    text = tree.read_text(MAINTENANCE_PATH, limit_bytes=_LIMIT_BYTES)
    if text.value is None:
        return f"{MAINTENANCE_PATH} is there and cannot be read: {text.reason}"
    return one_line(text.value.partition("\n")[0]) or f"{MAINTENANCE_PATH} is there"
