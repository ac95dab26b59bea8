"""Approvals: one file, one plan, one run; and nothing counts that anybody but root or this user could have written."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exitguard.act.approval import Approval, ApprovalError, find_approval, spend_approval, write_approval

START = datetime(2026, 11, 23, 2, 46, 1, tzinfo=UTC)
PLAN = "sha256:" + "1f0c9a2b" * 8
OTHER_PLAN = "sha256:" + "2b" * 32
NAME = f"{'1f0c9a2b' * 8}.json"
RUN = "20261123T024601Z-1f0c9a2b"
OTHER_RUN = "20261123T024602Z-1f0c9a2b"
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def approvals(tmp_path: Path) -> Path:
    return tmp_path / "remedy" / "approvals"


def hours(count: float) -> datetime:
    return START + timedelta(hours=count)


def approve(directory: Path, plan: str = PLAN, *, by: str = "ops-lead", comment: str = "") -> Path:
    return write_approval(directory, plan, by, START, hours(8), comment)


def refusal(directory: Path, now: datetime = START, plan: str = PLAN) -> str:
    """What finding and spending an approval both say; neither changes anything."""
    before = sorted(directory.rglob("*.json"))
    with pytest.raises(ApprovalError) as found:
        find_approval(directory, plan, now)
    with pytest.raises(ApprovalError) as spent:
        spend_approval(directory, plan, RUN, now)
    assert str(found.value) == str(spent.value)
    assert sorted(directory.rglob("*.json")) == before
    return str(found.value)


def test_approval_that_was_given_is_found_until_it_expires(approvals: Path) -> None:
    path = approve(approvals, comment="after the release")
    expected = Approval(plan=PLAN, approver="ops-lead", approved_at=START, expires=hours(8), comment="after the release")
    for now in (START, hours(7.99)):
        assert find_approval(approvals, PLAN, now) == expected
    assert refusal(approvals, hours(8)).startswith(f"{path}: expired at 2026-11-23T10:46:01.000000Z. Expected one that counts now")


def test_file_holds_the_hash_and_nothing_that_could_be_run(approvals: Path) -> None:
    assert json.loads(approve(approvals).read_text()) == {
        "schema_version": 1,
        "plan": PLAN,
        "approver": "ops-lead",
        "approved_at": "2026-11-23T02:46:01.000000Z",
        "expires": "2026-11-23T10:46:01.000000Z",
        "comment": "",
    }


def test_directory_and_file_are_private_whatever_the_umask(approvals: Path) -> None:
    before = os.umask(0)
    try:
        path = approve(approvals)
        spend_approval(approvals, PLAN, RUN, START)
        approve(approvals)
    finally:
        os.umask(before)
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in (approvals.parent, *approvals.parent.rglob("*"))}
    assert modes == {"remedy": 0o700, "approvals": 0o700, "used": 0o700, NAME: 0o600, f"{path.stem}-{RUN}.json": 0o600}


def test_plan_without_approval_says_how_to_get_one(approvals: Path) -> None:
    assert refusal(approvals) == (
        f"{approvals}: there is no such directory, so no plan is approved. Have it approved by `exitguard approve PLAN`."
    )
    approve(approvals, OTHER_PLAN)
    assert refusal(approvals) == (
        f"{approvals / NAME}: there is no such file: plan {PLAN} is not approved. Have it approved by `exitguard approve PLAN`."
    )


def test_approval_from_the_future_does_not_count(approvals: Path) -> None:
    approve(approvals)
    assert "Expected a time that is past: look at this machine's clock" in refusal(approvals, START - timedelta(seconds=1))


def test_file_that_names_another_hash_does_not_count(approvals: Path) -> None:
    approve(approvals, OTHER_PLAN).rename(approvals / NAME)
    assert f"{NAME}: approves another plan, {OTHER_PLAN}. Expected the hash in its name." in refusal(approvals)


def test_same_approval_twice_is_one_and_another_is_refused(approvals: Path) -> None:
    assert approve(approvals) == approve(approvals)
    before = (approvals / NAME).read_bytes()
    with pytest.raises(ApprovalError, match=r"another approval of this plan is there, given by 'ops-lead' until 2026-11-23T10:46:01.*rm "):
        approve(approvals, by="somebody else")
    assert (approvals / NAME).read_bytes() == before
    assert [path.name for path in approvals.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expires": START}, "Expected a later time"),
        ({"approver": ""}, "no approval was written: approver"),
        ({"approver": "ops\nlead"}, "no approval was written: approver"),
        ({"comment": "x" * 2001}, "no approval was written: comment"),
        ({"plan_hash": "1f0c9a2b" * 8}, "is not the hash of a plan. Expected sha256: and 64 hex digits"),
        ({"plan_hash": "sha256:../../../../etc/passwd"}, "is not the hash of a plan"),
    ],
)
def test_approval_that_would_not_count_is_not_written(approvals: Path, values: dict[str, object], message: str) -> None:
    given = {"plan_hash": PLAN, "approver": "ops-lead", "approved_at": START, "expires": hours(8), "comment": ""} | values
    with pytest.raises(ApprovalError, match=message):
        write_approval(approvals, **given)  # type: ignore[arg-type]
    assert not approvals.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"approved",
        b"\xff\xfe",
        b"[" * 30_000,
        json.dumps({"schema_version": 2, "plan": PLAN}).encode(),
    ],
)
def test_file_that_is_no_approval_does_not_count(approvals: Path, content: bytes) -> None:
    approve(approvals).write_bytes(content)
    assert f"{NAME}: is no approval: " in refusal(approvals)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("command", "reboot"),
        ("schema_version", 2),
        ("schema_version", "1"),
        ("approver", ""),
        ("approver", 7),
        ("expires", 1795000000),
        ("expires", "2026-11-24"),
        ("plan", PLAN.upper()),
        ("comment", None),
    ],
)
def test_field_that_is_not_as_it_should_be_is_named(approvals: Path, field: str, value: object) -> None:
    path = approve(approvals)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert f"{NAME}: is no approval: {field}: " in refusal(approvals)


def test_reading_is_bounded(approvals: Path) -> None:
    path = approve(approvals)
    path.write_bytes(path.read_bytes() + b" " * 65536)
    assert "has more than 65536 bytes" in refusal(approvals)


# Whose hand


@as_root
def test_file_of_another_user_does_not_count(approvals: Path) -> None:
    os.chown(approve(approvals), NOBODY, NOBODY)
    assert f"{NAME}: belongs to user nobody, so it does not count. Expected a regular file of root's" in refusal(approvals)


@as_root
def test_directory_of_another_user_makes_nothing_in_it_count(approvals: Path) -> None:
    approve(approvals)
    os.chown(approvals, NOBODY, NOBODY)
    assert f"{approvals}: belongs to user nobody, so no approval in it counts." in refusal(approvals)
    with pytest.raises(ApprovalError, match="belongs to user nobody"):
        approve(approvals, OTHER_PLAN)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_to_does_not_count(approvals: Path, mode: int) -> None:
    approve(approvals).chmod(mode)
    assert f"{NAME}: may be written to by more than its owner (mode {mode:04o}), so it does not count" in refusal(approvals)


@pytest.mark.parametrize("mode", [0o770, 0o703, 0o1777])
def test_directory_that_others_may_write_to_makes_nothing_in_it_count(approvals: Path, mode: int) -> None:
    approve(approvals)
    approvals.chmod(mode)
    assert f"{approvals}: may be written to by more than its owner (mode {mode:04o}), so no approval in it counts" in refusal(approvals)
    with pytest.raises(ApprovalError, match="may be written to by more than its owner"):
        approve(approvals, OTHER_PLAN)


def test_link_to_an_approval_does_not_count(approvals: Path, tmp_path: Path) -> None:
    approve(approvals).rename(tmp_path / "good.json")
    (approvals / NAME).symlink_to(tmp_path / "good.json")
    assert f"{NAME}: too many levels of symbolic links. Expected an approval: a regular file of root's" in refusal(approvals)
    with pytest.raises(ApprovalError, match="too many levels of symbolic links"):
        approve(approvals)


def test_link_to_a_directory_of_approvals_does_not_count(approvals: Path, tmp_path: Path) -> None:
    approve(tmp_path / "elsewhere")
    approvals.parent.mkdir()
    approvals.symlink_to(tmp_path / "elsewhere")
    assert f"{approvals}: not a directory. Expected a directory of root's with mode 0700, and no link to one." in refusal(approvals)
    with pytest.raises(ApprovalError, match="not a directory"):
        approve(approvals, OTHER_PLAN)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [NAME]


def test_pipe_or_directory_in_place_of_a_file_does_not_count_and_stops_nobody(approvals: Path) -> None:
    approve(approvals).unlink()
    os.mkfifo(approvals / NAME)
    assert f"{NAME}: not a regular file. Expected an approval" in refusal(approvals)
    (approvals / NAME).unlink()
    (approvals / NAME).mkdir()
    assert f"{NAME}: not a regular file. Expected an approval" in refusal(approvals)


def test_file_that_is_exchanged_for_a_link_never_counts_as_the_links_target(approvals: Path, tmp_path: Path) -> None:
    # The target names another hash: once it was read through the link, the refusal would say so.
    approve(approvals)
    target = approve(tmp_path / "elsewhere", OTHER_PLAN)
    swapper = os.fork()
    if swapper == 0:
        good = (approvals / NAME).read_bytes()
        parent = os.getppid()
        while os.getppid() == parent:
            (approvals / ".link").symlink_to(target)
            (approvals / ".link").rename(approvals / NAME)
            (approvals / ".file").write_bytes(good)
            (approvals / ".file").chmod(0o600)
            (approvals / ".file").rename(approvals / NAME)
        os._exit(0)
    answers = set()
    try:
        for _ in range(2000):
            try:
                answers.add(find_approval(approvals, PLAN, START).plan)
            except ApprovalError as error:
                answers.add("link" if "symbolic links" in str(error) else str(error))
    finally:
        os.kill(swapper, 9)
        os.waitpid(swapper, 0)
    assert answers == {PLAN, "link"}


# One run


def test_approval_is_good_for_one_run(approvals: Path) -> None:
    path = approve(approvals)
    assert spend_approval(approvals, PLAN, RUN, START).approver == "ops-lead"
    assert not path.exists()
    assert [entry.name for entry in (approvals / "used").iterdir()] == [f"{path.stem}-{RUN}.json"]
    with pytest.raises(
        ApprovalError, match=rf"is not approved any more: run {RUN} has used its approval, and one is good for one run\..*approve PLAN"
    ):
        spend_approval(approvals, PLAN, OTHER_RUN, START)
    with pytest.raises(ApprovalError, match=rf"run {RUN} has used its approval"):
        find_approval(approvals, PLAN, START)
    approve(approvals)
    spend_approval(approvals, PLAN, OTHER_RUN, START)
    assert len(list((approvals / "used").iterdir())) == 2


def test_run_that_was_interrupted_still_has_its_approval_after_it_expired(approvals: Path) -> None:
    approve(approvals)
    first = spend_approval(approvals, PLAN, RUN, START)
    assert spend_approval(approvals, PLAN, RUN, hours(100)) == first
    used = next((approvals / "used").iterdir())
    used.chmod(0o666)
    with pytest.raises(ApprovalError, match="may be written to by more than its owner"):
        spend_approval(approvals, PLAN, RUN, hours(100))


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", "x" * 65, ".hidden"])
def test_what_is_no_run_id_spends_nothing(approvals: Path, run_id: str) -> None:
    path = approve(approvals)
    with pytest.raises(ApprovalError, match="is not the id of a run"):
        spend_approval(approvals, PLAN, run_id, START)
    assert path.exists()


@as_root
def test_used_directory_that_others_have_a_hand_in_is_refused(approvals: Path, tmp_path: Path) -> None:
    path = approve(approvals)
    (approvals / "used").mkdir(mode=0o700)
    os.chown(approvals / "used", NOBODY, NOBODY)
    with pytest.raises(ApprovalError, match="used: belongs to user nobody"):
        spend_approval(approvals, PLAN, RUN, START)
    (approvals / "used").rmdir()
    (approvals / "used").symlink_to(tmp_path)
    with pytest.raises(ApprovalError, match="used: not a directory"):
        spend_approval(approvals, PLAN, RUN, START)
    assert path.exists()


SPEND = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from exitguard.act.approval import ApprovalError, spend_approval

sys.stdin.read()
try:
    spend_approval(Path(sys.argv[1]), sys.argv[2], sys.argv[3], datetime(2026, 11, 23, 3, tzinfo=UTC))
    print("spent")
except ApprovalError as error:
    print(error)
"""


def test_of_runs_that_race_for_an_approval_one_gets_it(approvals: Path) -> None:
    approve(approvals)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", SPEND, str(approvals), PLAN, f"run-{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()
        racer.stdin = None
    answers = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert answers.count("spent") == 1
    assert all("approve PLAN" in answer for answer in answers if answer != "spent")
    assert [path.name for path in (approvals / "used").iterdir()] == [f"{NAME.removesuffix('.json')}-run-{answers.index('spent')}.json"]


def test_file_exchanged_between_reading_and_moving_lets_nothing_run(approvals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = approve(approvals)
    rename = os.rename

    def exchange_first(source: str, target: str, **directories: int) -> None:
        (approvals / "new").write_bytes(path.read_bytes())
        rename(approvals / "new", path)
        rename(source, target, **directories)

    monkeypatch.setattr(os, "rename", exchange_first)
    with pytest.raises(ApprovalError, match="is not the file that was read a moment ago: somebody exchanged it"):
        spend_approval(approvals, PLAN, RUN, START)


@as_root
def test_process_without_root_cannot_approve_for_root(approvals: Path, tmp_path: Path) -> None:
    # As nobody: what it lays down where it may is no word to root.
    approvals.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        try:
            os.chown(approvals, NOBODY, NOBODY)
            for directory in (tmp_path, *tmp_path.parents[:2], approvals.parent):
                directory.chmod(directory.stat().st_mode | 0o011)
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            approve(approvals)
            find_approval(approvals, PLAN, START)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert "belongs to user nobody" in refusal(approvals)
    os.chown(approvals, 0, 0)
    approvals.chmod(0o700)
    assert f"{NAME}: belongs to user nobody" in refusal(approvals)
