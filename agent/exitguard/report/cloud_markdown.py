"""An audit of a cloud for a ticket or a wiki (Markdown), and its instances for a spreadsheet (CSV)."""

from collections import Counter
from collections.abc import Iterator

from exitguard.model.finding import Finding, Severity, SubjectKind, Verdict
from exitguard.model.instance import CloudReport, InstanceReport
from exitguard.report.cells import csv_pieces, markdown_code, markdown_rows
from exitguard.report.cloud_groups import Standing, standing
from exitguard.report.cloud_instances import STANDING_LABELS
from exitguard.report.cloud_table import EXIT_WORDS, answer
from exitguard.report.page import Look, counted
from exitguard.report.table import moment
from exitguard.report.words import label

#: Of one rule and verdict: a ticket has to be read.
_MOST_FINDINGS = 50
_SHOWN = (Verdict.FAIL, Verdict.ERROR, Verdict.UNKNOWN, Verdict.WAIVED)
_SEVERITIES = tuple(Severity)
#: What a property that says nothing is in a cell, which is empty where nothing was shown.
_SILENT = "silent"
_INSTANCE_FIELDS = (
    "uuid",
    "name",
    "project",
    "status",
    "locked",
    "flavor",
    "image",
    "zone",
    "host",
    "host_id",
    "build",
    "flavor_hw_pmu",
    "image_hw_pmu",
    "persistent",
    "live",
    "chain",
    "origin",
    "origin_reason",
    "next_element",
    "next_setting",
    "survives",
    "survives_reason",
)


def cloud_markdown(report: CloudReport, look: Look) -> Iterator[str]:
    """The verdict, the sums, and each finding that is not well, by rule; of many the first, with how many are left."""
    word, _, sentence = answer(report)
    code = report.summary.exit_code
    yield f"## {word}: {markdown_code(report.cloud.name, look)}\n\n{sentence[:1].upper()}{sentence[1:]}\n\n"
    yield (
        f"Exit code {code} ({EXIT_WORDS.get(code, 'see the manual')}), policy {markdown_code(report.policy, look)}, observed "
        f"{moment(report.observed_at)}, facts of {counted(report.hosts_joined, 'host')} joined.\n\n"
    )
    tally = Counter(standing(instance) for instance in report.instances)
    rows: list[list[str | int]] = [[STANDING_LABELS[each], tally[each]] for each in Standing if tally[each]]
    yield from markdown_rows(["instances", "how many"], [*rows, ["**all**", len(report.instances)]])
    for block in _blocks(report.findings):
        yield from _block(block, look)


def _blocks(findings: tuple[Finding, ...]) -> list[list[Finding]]:
    """Findings of one verdict and one rule, the worst first."""
    groups: dict[tuple[int, int, str], list[Finding]] = {}
    for finding in findings:
        if finding.verdict in _SHOWN:
            key = (_SHOWN.index(finding.verdict), _SEVERITIES.index(finding.severity), finding.rule)
            groups.setdefault(key, []).append(finding)
    return [group for _, group in sorted(groups.items(), key=lambda item: item[0])]


def _block(block: list[Finding], look: Look) -> Iterator[str]:
    first = block[0]
    yield f"\n### {label(first.verdict).upper()} {markdown_code(first.rule, look)}, severity {first.severity}\n\n"
    yield from markdown_rows(
        ["whom", "id", "because"],
        (
            [
                f"{finding.subject.kind} {markdown_code(finding.subject.name or finding.subject.id, look)}",
                markdown_code(finding.subject.id, look),
                markdown_code(finding.reason, look),
            ]
            for finding in block[:_MOST_FINDINGS]
        ),
    )
    if len(block) > _MOST_FINDINGS:
        yield f"\n… and {len(block) - _MOST_FINDINGS:,} more: `exitguard nova audit --format csv` has every instance.\n"
    if first.verdict is Verdict.FAIL and first.remedy is not None:
        yield f"\nRemedy {markdown_code(first.remedy, look)}: `exitguard plan --cloud` shows what it would change.\n"


def cloud_csv(report: CloudReport, look: Look) -> Iterator[str]:
    """A line an instance: all that is told of it but its evidence, how it stands, and the rules that it does not pass."""
    verdicts: dict[tuple[str, Verdict], list[str]] = {}
    for finding in report.findings:
        if finding.subject.kind is SubjectKind.INSTANCE:
            verdicts.setdefault((finding.subject.id, finding.verdict), []).append(finding.rule)
    titles = [*_INSTANCE_FIELDS, "standing", *(verdict.value for verdict in _SHOWN)]
    return csv_pieces(titles, (_line(instance, verdicts) for instance in report.instances), look)


def _line(instance: InstanceReport, verdicts: dict[tuple[str, Verdict], list[str]]) -> list[str | int | None]:
    told = [_SILENT if name.endswith("_hw_pmu") and not value and value is not None else _text(value) for name, value in _told(instance)]
    return [*told, standing(instance).value, *(" ".join(verdicts.get((instance.uuid, verdict), ())) for verdict in _SHOWN)]


def _told(instance: InstanceReport) -> Iterator[tuple[str, object]]:
    return ((name, getattr(instance, name)) for name in _INSTANCE_FIELDS)


def _text(value: object) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)
