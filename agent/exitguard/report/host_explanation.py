"""A rule about the host, with what this host shows: the verdict, the evidence, and the instructions that decide its kernel's state."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from exitguard.audit.kernel import replaced_by_live_patch
from exitguard.model.documents import AuditReport, FactsDocument, KernelReport
from exitguard.model.evidence import Evidence
from exitguard.model.finding import Finding
from exitguard.model.host import TargetKind
from exitguard.model.kernel import EvidenceMethod, KernelState
from exitguard.policy.schema import Check, Rule
from exitguard.report.explanation import evidence_section, rule_parts
from exitguard.report.listing import deciding_sentence, listing_lines
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, hanging, heading, indented, labelled, render
from exitguard.report.table_findings import VERDICT_STYLES
from exitguard.report.table_host import KERNEL_STYLES
from exitguard.report.words import label, meaning

_METHODS = {method.value: method for method in EvidenceMethod}
_SAVING = {
    True: "its callee finds no counter to walk, and returns: PMU off pays by itself, and the guard adds the call",
    False: "its callee walks the counters all the same: PMU off pays only with the guard",
    None: "not known: it depends on the body of the callee and on the CPU's vendor",
}


def explain_host_rule(rule: Rule, report: AuditReport, facts: FactsDocument, look: Look) -> str:
    """What the rule demands and why, and how this host stands by it. `facts` are those that `report` judged."""
    return render(look, _parts(rule, report, facts, look))


def _parts(rule: Rule, report: AuditReport, facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    yield from rule_parts(rule, look)
    name = report.host.hostname or report.host.id
    yield Text("\n").append_text(
        Text.assemble(
            look.own("This host", STRONG),
            "  ",
            look.foreign(name, FAINT),
            look.own(f"  observed {report.observed_at:%Y-%m-%d %H:%M} UTC", FAINT),
        )
    )
    findings = [finding for finding in report.findings if finding.rule == rule.id]
    for finding in findings:
        yield hanging(look, label(finding.verdict), _reason(finding, look), style=VERDICT_STYLES[finding.verdict])
    if not findings:
        yield indented(look.own("The policy of that audit did not have this rule.", DOUBT))
    if rule.check is Check.KERNEL_GUARD:
        yield from _kernel(report, facts, look)
    else:
        yield from evidence_section([each for finding in findings for each in finding.evidence], look)


def _reason(finding: Finding, look: Look) -> Text:
    text = look.foreign(finding.reason, limit_characters=1000)
    return text if finding.waiver is None else text.append_text(look.own("  waiver ", FAINT)).append_text(look.foreign(finding.waiver))


def _kernel(report: AuditReport, facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    kernel = report.host.kernel
    body = f", {label(kernel.body)}" if kernel.body is not None else ""
    rows = [
        ("kernel", look.foreign(kernel.release) if kernel.release is not None else look.own("release not known", DOUBT)),
        ("state", Text.assemble(look.own(label(kernel.state) + body, KERNEL_STYLES[kernel.state]), look.own(f": {meaning(kernel.state)}"))),
    ]
    if kernel.body is not None and kernel.state is KernelState.AFFECTED:
        rows.append(("PMU off", look.own(_SAVING[kernel.returns_at_once])))
    yield labelled(look, rows)
    yield heading(look, "Evidence", "strongest first")
    for evidence in kernel.evidence:
        yield _statement(evidence, look)
    if not kernel.evidence:
        yield indented(look.own("none", DOUBT))
    yield from _disagreements(kernel, look)
    yield from _instructions(report, facts, look)


def _statement(evidence: Evidence, look: Look) -> RenderableType:
    name, _, source = evidence.source.partition(": ")
    method = _METHODS.get(name)
    known = method is not None and bool(source)
    title = look.own(f"{label(method)}  ", STRONG) if method is not None and known else Text()
    where = look.foreign(source if known else evidence.source, FAINT)
    return hanging(look, "-", Text.assemble(title, where, look.own(": ", FAINT), look.foreign(evidence.value, limit_characters=600)))


def _disagreements(kernel: KernelReport, look: Look) -> Iterator[RenderableType]:
    if not kernel.disagreements:
        return
    yield heading(look, "Evidence that disagrees", "the strongest wins; this is what it wins against")
    for disagreement in kernel.disagreements:
        name, _, value = disagreement.partition(": ")
        method = _METHODS.get(name)
        title = look.own(f"{label(method)}  ", STRONG) if method is not None else look.foreign(f"{name}  ", STRONG)
        yield hanging(look, "!", Text.assemble(title, look.foreign(value, limit_characters=600)), style=DOUBT)


def _instructions(report: AuditReport, facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    yield heading(look, "The instructions that decide")
    code = facts.host.kernel.machine_code
    replaced = replaced_by_live_patch(facts.host.kernel)
    if code.value is None:
        yield from _not_read(report, facts, look)
        return
    reading = code.value
    build = f"build-id {reading.build_id}" if reading.build_id is not None else "no build-id"
    yield indented(Text.assemble(look.foreign(reading.path, limit_characters=400), look.own("\n"), look.foreign(build, FAINT)))
    if replaced is not None:
        yield indented(look.foreign(f"They are not shown, since they may not be what runs: {replaced}.", DOUBT, limit_characters=600))
        yield from _hints(report, facts, look)
        return
    if reading.listing:
        yield Text()
        yield from listing_lines(reading, look)
        yield Text()
    yield indented(look.foreign(deciding_sentence(reading), limit_characters=1000))
    if reading.obstacle is not None:
        yield from _hints(report, facts, look)


def _not_read(report: AuditReport, facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    code = facts.host.kernel.machine_code
    yield labelled(
        look,
        [
            ("not read", look.foreign(code.reason or "", DOUBT, limit_characters=600)),
            ("source", look.foreign(code.source)),
            *([("unlock", look.foreign(code.unlock, limit_characters=400))] if code.unlock is not None else []),
        ],
    )
    yield from _hints(report, facts, look)


def _hints(report: AuditReport, facts: FactsDocument, look: Look) -> Iterator[RenderableType]:
    """What would show more, where it can."""
    hints: Sequence[Text] = ()
    build_id = facts.host.kvm.build_id.value
    if build_id is not None:
        hints = (
            Text.assemble(
                look.own("Decide a build once: `exitguard kernel inspect FILE --save BUILDS.yaml`. Hosts recognise this one as "),
                look.foreign(build_id),
                look.own("."),
            ),
        )
    if report.host.target.kind is TargetKind.LOCAL:
        live = "`exitguard kernel inspect --running --live`, as root, reads the code that runs from the kernel's memory. No audit does."
        hints = (*hints, look.own(live))
    if hints:
        yield Text()
    for hint in hints:
        yield hanging(look, "-", hint)
