"""What makes the daemon say that there is something to do, and how often."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "audit"))

import audit_builders as b

from exitguard.daemon.proposal import PROPOSAL_NAME, Proposals
from exitguard.model.plan import Mode
from exitguard.model.pmu import PmuElement
from exitguard.policy.load import load_rulebook
from exitguard.policy.problem import Problem
from exitguard.policy.remedies import Remedies

SHIPPED = load_rulebook()
DUE = b.facts(b.domain(defined=b.definition()))
MORE = b.facts(*(b.domain(number=number, defined=b.definition()) for number in (1, 2)))
DONE = b.facts(b.domain(defined=b.definition(pmu=PmuElement.OFF)))


def test_new_steps_are_proposed_at_once_and_the_same_ones_once_an_hour(tmp_path: Path) -> None:
    proposals = Proposals()
    assert proposals.consider(DUE, SHIPPED, tmp_path, b.NOW) == 1
    assert "1 steps are due" in (tmp_path / PROPOSAL_NAME).read_text()
    assert proposals.consider(DUE, SHIPPED, tmp_path, b.NOW + timedelta(minutes=59)) is None
    assert proposals.consider(MORE, SHIPPED, tmp_path, b.NOW + timedelta(minutes=59)) == 2
    assert proposals.consider(MORE, SHIPPED, tmp_path, b.NOW + timedelta(minutes=119)) == 2


def test_nothing_is_written_where_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert Proposals().consider(DONE, SHIPPED, tmp_path, b.NOW) is None
    assert list(tmp_path.iterdir()) == []


def test_steps_that_come_back_are_proposed_again(tmp_path: Path) -> None:
    proposals = Proposals()
    assert [proposals.consider(facts, SHIPPED, tmp_path, b.NOW) for facts in (DUE, DONE, DUE)] == [1, None, 1]


def test_nothing_is_proposed_where_plans_are_only_shown_or_a_waiver_is_malformed(tmp_path: Path) -> None:
    only_shown = SHIPPED.policy.model_copy(update={"remedies": Remedies(mode=Mode.REPORT)})
    assert Proposals().consider(DUE, SHIPPED.model_copy(update={"policy": only_shown}), tmp_path, b.NOW) is None
    problem = Problem(file="w.yaml", line=1, path="", message="expected a waiver")
    assert Proposals().consider(DUE, SHIPPED.model_copy(update={"waiver_problems": (problem,)}), tmp_path, b.NOW) is None
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / PROPOSAL_NAME).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        Proposals().consider(DUE, SHIPPED, tmp_path, b.NOW)
    assert target.read_text() == "untouched"
