"""An order for kernel releases and boot entry ids, as rpmvercmp(8) and grub's blscfg put them: runs of digits count as numbers."""

import re

#: One run of digits, one run of letters, or a mark that has a rank of its own: `~` is older than the end, `^` newer than the end.
_RUN = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")
_TILDE, _END, _CARET, _LETTERS, _DIGITS = range(5)

VersionKey = tuple[tuple[int, int, str], ...]


def version_key(text: str) -> VersionKey:
    """A sort key: `6.1.0-9` before `6.1.0-56`, `1.0~rc1` before `1.0`, `1.0` before `1.0.1`."""
    return (*(_rank(run) for run in _RUN.findall(text)), (_END, 0, ""))


def _rank(run: str) -> tuple[int, int, str]:
    if run == "~":
        return (_TILDE, 0, "")
    if run == "^":
        return (_CARET, 0, "")
    if run.isdigit():
        digits = run.lstrip("0")
        return (_DIGITS, len(digits), digits)  # longer is larger: no int(), whose cost a hostile name could choose
    return (_LETTERS, 0, run)
