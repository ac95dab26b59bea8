"""What a fleet saves, for people and for programs: together, by what holds the rest back, and the hosts with the most to gain."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from rich.console import RenderableType
from rich.text import Text

from exitguard.model.documents import Tool
from exitguard.model.hub import FleetSavingsLine
from exitguard.model.rates import HostSavings, PerSecond, Worthwhile
from exitguard.model.record import Record
from exitguard.model.time import UtcTime
from exitguard.report.amounts import amount, cycles_a_second, pays
from exitguard.report.bars import bar
from exitguard.report.page import DOUBT, FAINT, STRONG, Look, columns, counted, heading, indented, labelled, render
from exitguard.report.savings_total import SavingsTotal, standing_words

_MOST_HOSTS = 20
_BAR_COLUMNS = 24


class StandingSkips(Record):
    """Exits a second, at most, that skip an instruction and stand alike."""

    #: `saved`, the link that holds the saving back, or why there is none.
    standing: str
    skip_exits_per_second: float


class HostGain(Record):
    """One host, and what it would save beyond what it does."""

    host_id: str
    hostname: str | None
    saved_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None
    available_cores: PerSecond | None
    worthwhile: Worthwhile


class FleetSavings(Record):
    """What the hosts of a fleet save at one time, by what they themselves said in the two hours before."""

    schema_version: Literal[1] = 1
    tool: Tool = Tool()
    at: UtcTime
    #: How many hosts the hub knew, and how many of them told what they save.
    hosts: int
    accounted: int
    #: Sums of the hosts'; None where nothing is known. What is unquantified is in none of them.
    saved_cycles_per_second: PerSecond | None
    available_cycles_per_second: PerSecond | None
    own_cycles_per_second: float
    net_saved_cycles_per_second: PerSecond | None
    #: Of the hosts whose frequency is known.
    saved_cores: PerSecond | None
    available_cores: PerSecond | None
    #: At most.
    unquantified_saved_skip_exits_per_second: float
    unquantified_available_skip_exits_per_second: float
    #: Hosts by whether a change pays there, net of the agent's own cost.
    worthwhile: dict[Worthwhile, int]
    #: The busiest first.
    standings: tuple[StandingSkips, ...]
    #: The hosts with the most to gain, by the low bound of what a change would save: the first ones.
    most_to_gain: tuple[HostGain, ...]


@dataclass
class FleetAccount:
    """Add hosts, then read."""

    hosts: int = 0
    total: SavingsTotal = field(default_factory=SavingsTotal)
    _most: list[tuple[float, str, FleetSavingsLine]] = field(default_factory=list)

    def add(self, line: FleetSavingsLine) -> None:
        self.hosts += 1
        if line.savings is None:
            return
        self.total.add(line.savings)
        available = line.savings.now.available_cycles_per_second
        if available is None or available.high <= 0:
            return
        entry = (available.low, line.host_id, line)
        if len(self._most) < _MOST_HOSTS:
            heapq.heappush(self._most, entry)
        else:
            heapq.heappushpop(self._most, entry)

    def told(self, at: datetime) -> FleetSavings:
        total = self.total
        return FleetSavings(
            at=at,
            hosts=self.hosts,
            accounted=total.accounted,
            saved_cycles_per_second=total.saved,
            available_cycles_per_second=total.available,
            own_cycles_per_second=total.own_cycles,
            net_saved_cycles_per_second=_less(total.saved, total.own_cycles),
            saved_cores=total.saved_cores,
            available_cores=total.available_cores,
            unquantified_saved_skip_exits_per_second=total.unquantified_saved_skips,
            unquantified_available_skip_exits_per_second=total.unquantified_available_skips,
            worthwhile=dict(total.worthwhile),
            standings=tuple(
                StandingSkips(standing=name, skip_exits_per_second=rate)
                for name, rate in sorted(total.skips_by_standing.items(), key=lambda item: -item[1])
            ),
            most_to_gain=tuple(_gain(line, line.savings) for _, _, line in sorted(self._most, reverse=True) if line.savings is not None),
        )


def fleet_savings_page(told: FleetSavings, total: SavingsTotal, look: Look) -> str:
    """The page."""
    return render(look, _parts(told, total, look))


def savings_parts(total: SavingsTotal, look: Look) -> Iterator[RenderableType]:
    """The section that tells what many hosts save."""
    yield heading(look, "Savings", f"of {counted(total.accounted, 'host')} with a ledger")
    if not total.accounted:
        yield indented(look.own("No host has a ledger: `exitguard daemon` keeps one.", DOUBT))
        return
    rows = [
        ("saved now", look.own(amount(total.saved, None))),
        ("wasted now", look.own(amount(total.available, None))),
        ("the agents", look.own(f"use {total.own_cycles:,.0f} cycles/s")),
        ("does it pay", look.own(pays(total.worthwhile))),
    ]
    if total.unquantified_saved_skips:
        rows.append(("unquantified", look.own(f"what up to {total.unquantified_saved_skips:,.0f} skips a second save is in no sum", DOUBT)))
    yield labelled(look, rows)
    most = max(total.skips_by_standing.values(), default=0)
    if most:
        yield indented(look.own("skips a second, by what becomes of them or holds them back:", FAINT))
        ordered = sorted(total.skips_by_standing.items(), key=lambda item: -item[1])
        yield labelled(look, [(standing_words(name), _bar(round(rate), round(most), look)) for name, rate in ordered])


def _parts(told: FleetSavings, total: SavingsTotal, look: Look) -> Iterator[RenderableType]:
    yield Text.assemble(
        look.own(f"{counted(told.hosts, 'host')}", STRONG),
        look.own(f" at {told.at:%Y-%m-%d %H:%M} UTC; {told.accounted:,} of them told in the two hours before what they save."),
    )
    yield from savings_parts(total, look)
    if told.saved_cores is not None or told.available_cores is not None:
        yield indented(
            look.own(
                f"In cores, at the rated frequency of each host: {_cores(told.saved_cores)} saved, {_cores(told.available_cores)} wasted.",
                FAINT,
            )
        )
    if told.most_to_gain:
        yield heading(look, "The most to gain", "by the low bound of what a change would save")
        rows = [
            (
                look.foreign(host.hostname or host.host_id, limit_characters=64),
                look.own(cycles_a_second(host.saved_cycles_per_second)),
                look.own(cycles_a_second(host.available_cycles_per_second)),
                look.own(_cores(host.available_cores)),
            )
            for host in told.most_to_gain
        ]
        yield columns(look, ("host", "saved cycles/s", "wasted cycles/s", "cores"), rows)


def _gain(line: FleetSavingsLine, savings: HostSavings) -> HostGain:
    return HostGain(
        host_id=line.host_id,
        hostname=line.hostname,
        saved_cycles_per_second=savings.now.saved_cycles_per_second,
        available_cycles_per_second=savings.now.available_cycles_per_second,
        available_cores=savings.now.available_cores,
        worthwhile=savings.worthwhile,
    )


def _less(rate: PerSecond | None, own: float) -> PerSecond | None:
    return None if rate is None else rate.model_copy(update={"low": rate.low - own, "high": rate.high - own})


def _cores(rate: PerSecond | None) -> str:
    return "not known" if rate is None else f"{rate.low:,.3f} to {rate.high:,.3f}"


def _bar(count: int, most: int, look: Look) -> Text:
    return look.own(f"{count:>9,} {bar(count, most, _BAR_COLUMNS, unicode=look.unicode)}")
