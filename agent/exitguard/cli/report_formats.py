"""The formats of `exitguard report`, and where each goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from exitguard.report.formats.writer import Setting, Writer


class ReportFormat(StrEnum):
    """In the order of who reads them: people, programs, monitoring, CI."""

    TABLE = "table"
    HTML = "html"
    MARKDOWN = "markdown"
    JSON = "json"
    CSV = "csv"
    JUNIT = "junit"
    SARIF = "sarif"
    PROMETHEUS = "prometheus"
    NAGIOS = "nagios"

    @property
    def groups(self) -> bool:
        """Whether it has a place for groups."""
        return self in (ReportFormat.TABLE, ReportFormat.HTML, ReportFormat.MARKDOWN)


@dataclass(frozen=True)
class Form:
    """A format and its file; None: standard output."""

    format: ReportFormat
    file: Path | None


def formats_of(texts: Sequence[str], output: Path | None) -> list[Form]:
    """What `--format FORMAT[:FILE]` and `--output FILE` ask for. Raises typer.BadParameter."""
    forms = [_form(text) for text in texts]
    bare = [place for place, form in enumerate(forms) if form.file is None]
    if len(bare) > 1:
        names = " and ".join(forms[place].format for place in bare)
        raise typer.BadParameter(
            f"{names} would both go to one place: give all but one a file, such as html:report.html", param_hint="--format"
        )
    if output is not None:
        if not bare:
            raise typer.BadParameter("every --format has its file already", param_hint="--output")
        forms[bare[0]] = Form(forms[bare[0]].format, output)
    files = [form.file.resolve() for form in forms if form.file is not None]
    if len(set(files)) < len(files):
        raise typer.BadParameter("two formats would go to one file", param_hint="--format")
    return forms


def _form(text: str) -> Form:
    name, colon, file = text.partition(":")
    try:
        chosen = ReportFormat(name)
    except ValueError:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(ReportFormat)}", param_hint="--format") from None
    if colon and not file.strip():
        raise typer.BadParameter(f"{text!r} names no file after the colon", param_hint="--format")
    return Form(chosen, Path(file) if file else None)


def writer_for(chosen: ReportFormat, setting: "Setting") -> "Writer":
    """What writes that format; only that is imported."""
    match chosen:
        case ReportFormat.TABLE:
            from exitguard.report.formats.as_table import TableWriter

            return TableWriter(setting)
        case ReportFormat.HTML:
            from exitguard.report.formats.as_html import HtmlWriter

            return HtmlWriter(setting)
        case ReportFormat.MARKDOWN:
            from exitguard.report.formats.as_markdown import MarkdownWriter

            return MarkdownWriter(setting)
        case ReportFormat.JSON:
            from exitguard.report.formats.as_json import JsonWriter

            return JsonWriter(setting)
        case ReportFormat.CSV:
            from exitguard.report.formats.as_csv import CsvWriter

            return CsvWriter(setting)
        case ReportFormat.JUNIT:
            from exitguard.report.formats.as_junit import JunitWriter

            return JunitWriter(setting)
        case ReportFormat.SARIF:
            from exitguard.report.formats.as_sarif import SarifWriter

            return SarifWriter(setting)
        case ReportFormat.PROMETHEUS:
            from exitguard.report.formats.as_prometheus import PrometheusWriter

            return PrometheusWriter(setting)
        case ReportFormat.NAGIOS:
            from exitguard.report.formats.as_nagios import NagiosWriter

            return NagiosWriter(setting)
