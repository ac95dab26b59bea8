"""`exitguard kernel inspect`: whether kernels have the guard, decided by their machine code, with the instructions that decide."""

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.options import Format, FormatOption, OutputOption, some_path, some_text
from exitguard.cli.output import look_for, note, write_result
from exitguard.cli.refusal import Refusal

if TYPE_CHECKING:
    from exitguard.model.documents import KernelInspection

app = typer.Typer(help="Kernels: which of them have the guard.", no_args_is_help=True, rich_markup_mode=None)

_THREE_WAYS = (
    "expected what to inspect: files or folders of unpacked packages (kvm.ko, vmlinux, linux-image-…/), releases of installed kernels "
    "(6.1.0-56-amd64), or --running"
)
#: What takes no longer needs no progress.
_PATIENCE_SECONDS = 1
_EXIT_ERROR = 1
_CLEAR_LINE = "\r\x1b[K"


@app.callback()
def kernel() -> None:
    """Keep `inspect` a verb of its own while it is the only one."""


@app.command()
def inspect(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KERNEL",
            parser=some_text,
            help="A file (kvm.ko, compressed too; vmlinux, vmlinuz), a folder of unpacked packages, or the release of an installed kernel.",
        ),
    ] = None,
    *,
    running: Annotated[
        bool, typer.Option("--running", help="What runs as KVM here, by the file of the same build-id. Needs no privilege.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="With --running: the code itself, live patches included, from /proc/kcore. Needs root.")
    ] = False,
    btf_base: Annotated[
        Path | None,
        typer.Option(
            "--btf-base",
            metavar="FILE",
            parser=some_path,
            help="The vmlinuz or vmlinux of the modules' build, where none lies beside them.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", parser=some_path, help="Add each decided build to this kernels file, or begin one, for hosts."
        ),
    ] = None,
    listing: Annotated[
        bool | None,
        typer.Option("--listing/--no-listing", help="Show the instructions. Default: of up to 3 kernels, and of more a table alone."),
    ] = None,
    output_format: FormatOption = Format.TABLE,
    output: OutputOption = None,
) -> None:
    """Say which kernels have the guard, by their machine code. Exit code 2 where one is affected, else 3 where one is unknown.

    A file is read by a process apart: 512 MiB and 30 s each. Files may come from anywhere.
    """
    _expect_sense(kernels, running=running, live=live, btf_base=btf_base)
    _expect_two_files(save, output)

    if save is not None:
        from exitguard.cli.builds import expect_builds_file

        expect_builds_file(save)  # before the work
    found = _inspect(tuple(kernels or ()), running=running, live=live, btf_base=btf_base)

    from exitguard.audit.inspection import inspection_exit_code
    from exitguard.report.json_document import json_text
    from exitguard.report.kernel_table import kernel_table

    exit_code = inspection_exit_code(found)
    if output_format is Format.JSON:
        write_result(json_text(found), output)
    else:
        write_result(kernel_table(found, look_for(output, os.environ), exit_code=exit_code, listing=listing), output)
    if save is not None:
        from exitguard.cli.builds import save_builds

        note(save_builds(found, save))
    raise typer.Exit(exit_code)


def _expect_sense(kernels: list[str] | None, *, running: bool, live: bool, btf_base: Path | None) -> None:
    if live and not running:
        raise typer.BadParameter("only what runs has its code in memory: give it together with --running", param_hint="--live")
    if not kernels and not running:
        raise typer.BadParameter(_THREE_WAYS, param_hint="KERNEL")
    if btf_base is not None and not kernels:
        raise typer.BadParameter("is for files and releases: what runs shows its own", param_hint="--btf-base")


def _expect_two_files(save: Path | None, output: Path | None) -> None:
    if save is not None and output is not None and save.resolve() == output.resolve():
        raise typer.BadParameter("expected another file than that of --output", param_hint="--save")


def _inspect(arguments: tuple[str, ...], *, running: bool, live: bool, btf_base: Path | None) -> "KernelInspection":
    from exitguard.inspection import Inspection, InspectionRequest, NothingInspected

    request = InspectionRequest(arguments=arguments, running=running, live=live, btf_base=btf_base)
    progress = _Progress()
    try:
        with Inspection(request, pulse=progress.pulse) as inspection:
            import exitguard.report.kernel_table  # noqa: F401 - while the first file is read

            progress.what = f"{inspection.count} {'kernel' if inspection.count == 1 else 'kernels'}"
            return inspection.finish(observed_at=datetime.now(UTC))
    except NothingInspected as nothing:
        raise Refusal(*(f"exitguard: {sentence}." for sentence in nothing.sentences), code=_EXIT_ERROR) from None
    finally:
        progress.end()


class _Progress:
    """How long it has been going on, on a terminal, once it takes a while."""

    def __init__(self) -> None:
        self.what = "kernels"
        self._begun = time.monotonic()
        self._told = -1
        self._shows = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def pulse(self) -> None:
        seconds = int(time.monotonic() - self._begun)
        if self._shows and seconds >= _PATIENCE_SECONDS and seconds != self._told:
            self._told = seconds
            self._write(f"{_CLEAR_LINE}reading {self.what}: {seconds} s")

    def end(self) -> None:
        if self._told >= 0:
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # nobody looks any more
            self._shows = False
