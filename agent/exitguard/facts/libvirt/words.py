"""libvirt's errors in words: what went wrong, and what would help."""

from typing import Any

_INSTALL = "install libvirt-daemon-system and start libvirtd (or virtqemud)"
_PERMISSION = "a user who may open libvirt's read-only socket (libvirt-sock-ro), or membership in group libvirt"
_LIMIT_CHARACTERS = 400


def message_of(error: Any) -> str:
    """What libvirt says of its error."""
    return (error.get_error_message() or str(error)).strip()[:_LIMIT_CHARACTERS] or "libvirt gave no reason"


def unlock_of(libvirt: Any, error: Any) -> str | None:
    """What would make a connection possible that failed with `error`; None where that is not known."""
    message = message_of(error)
    denied = error.get_error_code() in (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_ACCESS_DENIED)
    if denied or "Permission denied" in message:
        return _PERMISSION
    return _INSTALL if _nobody_listens(message) else None


def _nobody_listens(message: str) -> bool:
    """Whether libvirt's own socket is missing, or left by a daemon that is gone; a missing system bus is another matter."""
    return "Failed to connect socket" in message and ("No such file or directory" in message or "Connection refused" in message)


def keep_quiet(libvirt: Any) -> None:
    """Errors reach the report as reasons; libvirt would also print them on stderr."""
    libvirt.registerErrorHandler(_ignore, None)


def _ignore(_context: object, _error: object) -> None:
    pass
