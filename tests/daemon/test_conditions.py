"""What is wrong is said once."""

from exitguard.daemon.conditions import Conditions


def test_condition_is_said_when_it_begins_when_its_reason_changes_and_when_it_is_over() -> None:
    said: list[tuple[str, str, str]] = []
    conditions = Conditions(
        begun=lambda name, reason: said.append(("begun", name, reason)), over=lambda name, reason: said.append(("over", name, reason))
    )
    conditions.holds("store", None)
    conditions.holds("store", "no room")
    conditions.holds("store", "no room")
    conditions.holds("libvirt", "gone")
    assert conditions.worst == "no room"
    conditions.holds("store", "read-only")
    conditions.holds("store", None)
    conditions.holds("store", None)
    assert said == [
        ("begun", "store", "no room"),
        ("begun", "libvirt", "gone"),
        ("begun", "store", "read-only"),
        ("over", "store", "read-only"),
    ]
    assert conditions.worst == "gone"
