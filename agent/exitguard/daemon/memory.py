"""Memory given back after a large piece of work, so that an idle daemon is as small as it can be."""

import ctypes
import gc
from functools import cache
from typing import Any


def give_back() -> None:
    """Collect what is garbage, and return free pages to the system where the C library can (malloc_trim(3) of glibc)."""
    gc.collect()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
