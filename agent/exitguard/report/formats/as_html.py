"""One HTML file for everyone: the answer, what to do first, charts, what is wrong, every host with its evidence; no network is asked.

All but the details of single hosts is plain HTML, which needs no script. The template escapes every text; the script sets texts alone.
"""

import base64
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from exitguard import __version__
from exitguard.model.finding import Verdict
from exitguard.model.pmu import ChainState
from exitguard.report.amounts import amount, pays
from exitguard.report.formats.writer import Setting
from exitguard.report.html_page.charts import Bar, bar, over_time
from exitguard.report.html_page.details import Details
from exitguard.report.overview import WORST_FIRST, Overview
from exitguard.report.page import counted
from exitguard.report.result import HostResult
from exitguard.report.savings_total import standing_words
from exitguard.report.states import state_word
from exitguard.report.text import visible
from exitguard.report.words import label

_MOST_PROBLEMS, _MOST_GROUPS, _MOST_MOMENTS = 200, 200, 200
_LIMIT_CHARACTERS = 400
#: The class of colour of a host's state, a verdict and what becomes of a saving.
_KINDS = {0: "good", 2: "bad", 3: "doubt", 1: "worst"}
_VERDICT_KINDS = {
    Verdict.PASS: "good",
    Verdict.FAIL: "bad",
    Verdict.UNKNOWN: "doubt",
    Verdict.ERROR: "worst",
    Verdict.WAIVED: "calm",
    Verdict.NOT_APPLICABLE: "calm",
}
_CHAIN_KINDS = {ChainState.EFFECTIVE: "good", ChainState.MOOT: "calm", ChainState.NOT_APPLICABLE: "calm", ChainState.UNKNOWN: "doubt"}
_NO_LOSS = ("saved", "nothing", "opted_out")


class HtmlWriter:
    """Keeps the compact details of each host, and writes all of it at the end."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._details = Details({rule: text.title for rule, text in setting.rules.items()})

    def begin(self) -> Iterator[str]:
        yield from ()

    def host(self, result: HostResult) -> Iterator[str]:
        self._details.add(result)
        yield from ()

    def end(self, overview: Overview) -> Iterator[str]:
        style, script = _part("style.css"), _part("page.js")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        environment.filters["shown"] = lambda text: visible(str(text), limit_characters=_LIMIT_CHARACTERS)
        environment.filters["counted"] = counted
        environment.filters["label"] = label
        template = environment.from_string(_part("report.html.j2"))
        yield from template.generate(
            **_content(overview, self._setting),
            style=_own(style),
            script=_own(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            details=_own(self._details.encoded()),
        )


def _part(name: str) -> str:
    return files("exitguard.report.html_page").joinpath(name).read_text("utf-8")


def _own(text: str) -> Markup:
    """What is ours, or base64: it has no text from outside in it."""
    return Markup(text)  # noqa: S704 - see above


def _hash(text: str) -> Markup:
    """A source of Content-Security-Policy: just this text may act."""
    return _own(f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'")


def _content(overview: Overview, setting: Setting) -> dict[str, Any]:
    # The details stand in the order in which the hosts came; the page has the worst first.
    place = {id(host): number for number, host in enumerate(overview.hosts)}
    history = overview.history
    return {
        "version": __version__,
        "setting": setting,
        "overview": overview,
        "word": state_word(overview.exit_code),
        "kind": _KINDS[overview.exit_code],
        "counts": [(overview.by_exit_code[code], state_word(code), _KINDS[code]) for code in WORST_FIRST if overview.by_exit_code[code]],
        "cost": _cost(overview),
        "steps": overview.steps,
        "hosts_by_state": _bars(
            [(state_word(code), overview.by_exit_code[code], _KINDS[code]) for code in WORST_FIRST], len(overview.hosts)
        ),
        "by_chain": _bars(
            [(label(state), overview.by_chain[state], _CHAIN_KINDS.get(state, "bad")) for state in ChainState], overview.domains
        ),
        "by_kernel": _bars([(label(state), count, "calm") for state, count in overview.by_kernel.most_common()], len(overview.hosts)),
        "waterfall": _waterfall(overview.savings.skips_by_standing),
        "over_time": over_time(history, setting.at or setting.generated_at),
        "moments": [(each.at, [each.by_exit_code.get(code, 0) for code in WORST_FIRST]) for each in history[-_MOST_MOMENTS:]],
        "states": [state_word(code) for code in WORST_FIRST],
        "problems": [(each, _VERDICT_KINDS[each.verdict], setting.rules.get(each.rule)) for each in overview.problems[:_MOST_PROBLEMS]],
        "waived": overview.by_verdict[Verdict.WAIVED],
        "more_problems": max(0, len(overview.problems) - _MOST_PROBLEMS),
        "groups": overview.groups[:_MOST_GROUPS] if setting.group_by is not None else [],
        "more_groups": max(0, len(overview.groups) - _MOST_GROUPS),
        "fail": Verdict.FAIL,
        "unknown": Verdict.UNKNOWN,
        "passed": Verdict.PASS,
        "hosts": [
            (place[id(host)], host, state_word(host.exit_code), _KINDS[host.exit_code], _chains(host.by_chain))
            for host in overview.worst_hosts
        ],
    }


def _cost(overview: Overview) -> list[tuple[str, str]]:
    """What it is worth, as label and value."""
    if not overview.savings.accounted:
        return [("Savings", "not known: no host has a ledger (`exitguard daemon` keeps one)")]
    rows = [
        ("Wasted now", f"{amount(overview.savings.available, overview.savings.available_cores)}: what doing all of it would free"),
        ("Saved now", amount(overview.savings.saved, overview.savings.saved_cores)),
        ("The agents use", f"{overview.savings.own_cycles:,.0f} cycles/s"),
        ("Does it pay", pays(overview.savings.worthwhile)),
    ]
    if overview.savings.unquantified_available_skips:
        rows.append(
            (
                "Beyond that",
                f"what up to {overview.savings.unquantified_available_skips:,.0f} exits a second would save is not known in cycles",
            )
        )
    if overview.savings.accounted < len(overview.hosts):
        rows.append(
            (
                "Seen on",
                f"{overview.savings.accounted:,} of {counted(len(overview.hosts), 'host')}: the others have no ledger, or a stale one",
            )
        )
    return rows


def _bars(rows: list[tuple[str, int, str]], most: int) -> list[Bar]:
    return [Bar(name, f"{count:,}", bar(count, most, kind)) for name, count, kind in rows if count]


def _waterfall(skips: dict[str, float]) -> list[Bar]:
    """From all exits with work to spare down to what is saved: what each link holds back is taken away in turn."""
    whole = sum(skips.values())
    if not whole:
        return []
    rows = [Bar("all exits with work to spare", f"{whole:,.0f}", bar(whole, whole, "calm"))]
    left = whole
    held = sorted(((name, rate) for name, rate in skips.items() if name != "saved" and rate), key=lambda item: -item[1])
    for name, rate in held:
        left -= rate
        kind = "calm" if name in _NO_LOSS else "doubt" if name == "unknown" else "bad"
        rows.append(Bar(standing_words(name), f"\N{MINUS SIGN}{rate:,.0f}", bar(rate, whole, kind, start=left)))
    rows.append(Bar("saved", f"{skips.get('saved', 0.0):,.0f}", bar(skips.get("saved", 0.0), whole, "good")))
    return rows


def _chains(by_chain: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {label(state)}" for state in ChainState if (count := by_chain.get(state, 0)))
