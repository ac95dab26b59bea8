"""Where data goes: standard output, or a file that is never half written."""

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from exitguard.report.page import Look


_LONGEST_NOTE_CHARACTERS = 2000


class OutputError(Exception):
    """The result could not be written; its text says where and why."""


def write_result(text: str | Iterable[str], output: Path | None) -> None:
    """Write the result, or the pieces that it is made of, to `output` or to standard output. Raises OutputError.

    A reader that went away (`| head`) is no error: it has read what it wanted, and the exit code still tells the verdict.
    """
    with opened(output) as write:
        for piece in (text,) if isinstance(text, str) else text:
            write(piece)


@contextlib.contextmanager
def opened(output: Path | None) -> Iterator[Callable[[str], None]]:
    """What writes to `output`, which is there only when all was written, or to standard output. Raises OutputError.

    Each write tells its own failure, so that several can be open at once.
    """
    if output is None:
        if sys.stdout is None:  # `>&-`
            raise OutputError("standard output is closed: expected somewhere to write to, or --output FILE")
        yield _to_stdout
        _to_stdout("", flush=True)
        return
    with _failing_for(output), contextlib.ExitStack() as stack:
        file = stack.enter_context(_file(output))

        def write(text: str) -> None:
            with _failing_for(output):
                file.write(text)

        yield write


def _to_stdout(text: str, *, flush: bool = False) -> None:
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    except OSError as error:
        silence_stdout()
        raise unwritable_stdout(error) from error


@contextlib.contextmanager
def _failing_for(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(
            f"{output}: could not be written: {reason}. Expected a file name in a directory that can be written to."
        ) from error


def unwritable_stdout(error: OSError) -> OutputError:
    """What is said where standard output takes no more."""
    return OutputError(f"standard output could not be written: {(error.strerror or str(error)).lower()}")


def silence_stdout() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not complain about it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)


@contextlib.contextmanager
def _file(output: Path) -> Iterator[TextIO]:
    """A temporary file beside the target, then a rename; devices and pipes, which cannot be replaced, are written to."""
    target = output.resolve()  # through a symbolic link, as a shell's `>` would
    mode = _mode(target)
    if mode is not None and not stat.S_ISREG(mode):
        with target.open("w", encoding="utf-8", newline="") as file:  # a directory raises IsADirectoryError here
            yield file
        return
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)  # less the umask
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def look_for(output: Path | None, environ: Mapping[str, str]) -> "Look":
    """How a page may look at its destination: plain, 80 columns and UTF-8 in a file; what the terminal can show otherwise."""
    from exitguard.report.page import Look

    if output is not None or sys.stdout is None:
        return Look()
    terminal = sys.stdout.isatty()
    return Look(
        width=shutil.get_terminal_size().columns,
        color=terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb",
        unicode=shows_unicode(sys.stdout.encoding, environ),
    )


def shows_unicode(encoding: str | None, environ: Mapping[str, str]) -> bool:
    """Whether standard output takes more than ASCII: its encoding is UTF-8, and somebody said so.

    In the C locale Python writes UTF-8 all the same (PEP 540), and sets LC_CTYPE=C.UTF-8 in its own environment (PEP 538): that
    value says nothing of the terminal.
    """
    if encoding is None or encoding.lower().replace("-", "") != "utf8":
        return False
    if environ.get("PYTHONIOENCODING") or environ.get("PYTHONUTF8") == "1":
        return True
    category = environ.get("LC_CTYPE", "")
    chosen = environ.get("LC_ALL") or (category if category != "C.UTF-8" else "") or environ.get("LANG", "")
    return "utf8" in chosen.lower().replace("-", "")


def note(sentences: Iterable[str]) -> None:
    """Tell the operator something beside the data, on standard error."""
    from exitguard.report.text import visible

    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # nobody listens: the exit code has to do
        for sentence in sentences:
            for line in sentence.split("\n"):
                sys.stderr.write(visible(line, limit_characters=_LONGEST_NOTE_CHARACTERS, ascii_only=True) + "\n")
        sys.stderr.flush()
