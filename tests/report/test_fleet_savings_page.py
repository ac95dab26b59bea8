"""What a fleet saves: sums that are the hosts' sums, nothing that is not known as a zero, and the hosts with the most to gain."""

import account_builders as accounts
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.hub import FleetSavingsLine
from exitguard.model.rates import HostSavings, PerSecond, Worthwhile
from exitguard.report.fleet_savings_page import FleetAccount, FleetSavings, fleet_savings_page
from exitguard.report.page import Look

WIDE = Look(width=140)
NOW = accounts.accounted(accounts.summed(accounts.SAVED)).now.until


def host_savings(saved: PerSecond | None, available: PerSecond | None, own: float = 100.0) -> HostSavings:
    whole = accounts.accounted(accounts.summed(accounts.SAVED))
    now = whole.now.model_copy(
        update={"saved_cycles_per_second": saved, "available_cycles_per_second": available, "own_cycles_per_second": own}
    )
    return HostSavings(booked_until=NOW, hertz=whole.hertz, now=now, worthwhile=Worthwhile.YES, worthwhile_reason="it does")


def line(number: int, savings: HostSavings | None) -> FleetSavingsLine:
    return FleetSavingsLine(host_id=f"id-{number:03}", hostname=f"compute-{number}", savings=savings)


def told(*lines: FleetSavingsLine) -> tuple[FleetSavings, str]:
    account = FleetAccount()
    for each in lines:
        account.add(each)
    savings = account.told(NOW)
    return savings, fleet_savings_page(savings, account.total, WIDE)


def test_a_fleet_that_told_nothing_saves_nothing_that_is_known() -> None:
    savings, page = told(line(1, None), line(2, None))
    assert (savings.hosts, savings.accounted, savings.saved_cycles_per_second, savings.most_to_gain) == (2, 0, None, ())
    assert "No host has a ledger" in page
    assert "2 hosts" in page


def test_sums_are_those_of_the_hosts_and_net_of_the_agents() -> None:
    known = PerSecond(low=1000.0, high=2000.0)
    savings, page = told(line(1, host_savings(known, None)), line(2, host_savings(known, known)), line(3, None))
    assert savings.saved_cycles_per_second == PerSecond(low=2000.0, high=4000.0)
    assert savings.net_saved_cycles_per_second == PerSecond(low=1800.0, high=3800.0)
    assert (savings.hosts, savings.accounted, savings.worthwhile) == (3, 2, {Worthwhile.YES: 2})
    assert [each.hostname for each in savings.most_to_gain] == ["compute-2"]
    assert "2 of them told" in page
    assert "compute-2" in page
    assert FleetSavings.model_validate_json(savings.model_dump_json()) == savings


@given(st.lists(st.one_of(st.none(), st.integers(1, 10**9)), max_size=60))
def test_the_hosts_with_the_most_to_gain_come_first(gains: list[int | None]) -> None:
    lines = [
        line(number, host_savings(None, None if gain is None else PerSecond(low=float(gain), high=gain + 1.0)))
        for number, gain in enumerate(gains)
    ]
    savings, _ = told(*lines)
    found = [each.available_cycles_per_second.low for each in savings.most_to_gain if each.available_cycles_per_second is not None]
    assert found == sorted((float(gain) for gain in gains if gain is not None), reverse=True)[:20]


@pytest.mark.parametrize("name", ["\x1b[2J<script>", "a\nb"])
def test_names_of_hosts_are_shown_and_not_obeyed(name: str) -> None:
    each = line(1, host_savings(None, PerSecond(low=5.0, high=6.0))).model_copy(update={"hostname": name})
    page = told(each)[1]
    assert "\x1b" not in page
    assert "a\nb" not in page
