"""Maintenance windows: when they open and close, in whose time."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from exitguard.policy.load import PolicyError, load_rulebook
from exitguard.policy.remedies import Window
from exitguard.policy.window import closes_at, opens_at
from exitguard.resources import policies_dir

SATURDAY_NIGHT = Window(start="0 2 * * sat", duration_minutes=120, time_zone="Europe/Berlin")
LATE = Window(start="30 23 * * *", duration_minutes=60)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "closes"),
    [
        ("2026-11-28T00:59:59", None),  # Saturday 01:59:59 in Berlin
        ("2026-11-28T01:00:00", "2026-11-28T03:00:00"),
        ("2026-11-28T02:59:59", "2026-11-28T03:00:00"),
        ("2026-11-28T03:00:00", None),
        ("2026-07-04T00:00:00", "2026-07-04T02:00:00"),  # summer time
        ("2026-11-29T02:00:00", None),  # Sunday
    ],
)
def test_a_window_is_open_from_its_start_for_its_duration_in_its_own_time(now: str, closes: str | None) -> None:
    assert closes_at((SATURDAY_NIGHT,), at(now)) == (at(closes) if closes else None)


def test_a_window_goes_on_after_midnight_and_several_are_open_until_the_last_one_closes() -> None:
    assert closes_at((LATE,), at("2026-11-28T00:15:00")) == at("2026-11-28T00:30:00")
    longer = LATE.model_copy(update={"duration_minutes": 90})
    assert closes_at((LATE, longer), at("2026-11-28T00:15:00")) == at("2026-11-28T01:00:00")
    always = Window(start="* * * * *", duration_minutes=10080)
    assert closes_at((always,), at("2026-11-28T00:15:30")) == at("2026-12-05T00:15:00")


def test_the_next_opening_is_told() -> None:
    assert opens_at((SATURDAY_NIGHT, LATE), at("2026-11-27T12:00:00")) == at("2026-11-27T23:30:00")
    assert opens_at((), at("2026-11-27T12:00:00")) is None


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("{start: '0 2 * * 6', duration_minutes: 60}", "weekdays by name, such as sat or mon-fri, found '6'"),
        ("{start: '0 25 * * sat', duration_minutes: 60}", "cron's five fields, such as '0 2 * * sat', found '0 25 * * sat'"),
        ("{start: '0 2 * * sat', duration_minutes: 60, time_zone: Europe/Atlantis}", "a time zone that this machine knows"),
        ("{start: 'at night', duration_minutes: 60}", "cron's five fields"),
        ("{start: '0 2 * * sat', duration_minutes: 60, time_zone: ../../etc/passwd}", "a time zone's name"),
        ("{start: '0 2 * * sat', duration_minutes: 1}", "5"),
    ],
)
def test_a_window_that_would_open_at_another_time_than_it_says_is_refused(tmp_path: Path, window: str, message: str) -> None:
    text = (policies_dir() / "pmu-off.yaml").read_text()
    file = tmp_path / "policy.yaml"
    file.write_text(text.replace("\nrules:\n", f"\nremedies: {{mode: windowed, windows: [{window}]}}\nrules:\n"))
    with pytest.raises(PolicyError) as caught:
        load_rulebook((file,))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("remedies", "message"),
    [
        ("{mode: windowed}", "expected at least one window"),
        ("{rollout: {percentages: [50, 50, 100]}}", "expected more than the 50 before it"),
        ("{rollout: {percentages: [5, 25]}}", "expected 100"),
        ("{allowed: [reboot_everything]}", "reboot_everything"),
        (
            "{kernels: [{distribution: debian, distribution_version: '12', release: 6.1, packages: [{name: 'x; rm', version: '1'}]}]}",
            "a package's name",
        ),
    ],
)
def test_remedies_that_do_not_make_sense_are_refused(tmp_path: Path, remedies: str, message: str) -> None:
    text = (policies_dir() / "pmu-off.yaml").read_text()
    file = tmp_path / "policy.yaml"
    file.write_text(text.replace("\nrules:\n", f"\nremedies: {remedies}\nrules:\n"))
    with pytest.raises(PolicyError) as caught:
        load_rulebook((file,))
    assert message in str(caught.value)
