"""The binding that all measurements of libvirt share."""

from importlib import import_module
from typing import Any

from measurement import SkippedError


def load_libvirt() -> Any:
    """libvirt-python, silent: its errors are raised, and not printed as well. Raises SkippedError."""
    try:
        libvirt = import_module("libvirt")
    except ImportError as error:
        raise SkippedError(f"needs libvirt-python, of the package's extra `host`: {error}") from None
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt
