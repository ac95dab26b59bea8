"""A plan for this machine's own guests, carried out by real Ansible on real definitions: done, done again, undone, killed."""

import os
import random
from pathlib import Path

import pytest
from domain_documents import LOCKED_METADATA, NOVA_METADATA, UNKNOWN_METADATA, guest_xml, uuid_of
from libvirt_lab import LibvirtLab
from remedies import RemedyHost, kill_within, remedies_policy

pytestmark = pytest.mark.integration

_PMU_OFF = "<pmu state='off'/>"
_NO_APPROVAL = "{approval: none}"
#: A display with a password: what a definition that is read without its secrets would lose.
_PASSWORD = "sesame"  # noqa: S105 - nobody's
_VNC = f"<devices><graphics type='vnc' port='-1' listen='127.0.0.1' passwd='{_PASSWORD}'/></devices>"


def _guests() -> dict[str, str]:
    """Guests of every kind, by name: those named fix-* are libvirt's own, and have their PMU by default."""
    kinds = {
        "leave-off": {"mode": "maximum", "pmu": "off"},
        "leave-on": {"mode": "maximum", "pmu": "on"},
        "leave-named": {"mode": "custom"},
        "leave-nova": {"mode": "maximum", "metadata": NOVA_METADATA},
        "leave-locked": {"mode": "maximum", "metadata": LOCKED_METADATA},
        "leave-unknown": {"mode": "maximum", "metadata": UNKNOWN_METADATA},
    }
    wanted = {f"{kind}-{number}": options for kind, options in kinds.items() for number in range(3)}
    guests = {name: guest_xml(name, **options) for name, options in wanted.items()}  # type: ignore[arg-type]
    for number in range(12):
        xml = guest_xml(f"fix-{number:02}", mode="maximum")
        guests[f"fix-{number:02}"] = xml.replace("</devices>", f"{_VNC[9:]}") if number % 3 == 0 else xml
    return guests


@pytest.fixture
def host(lab: LibvirtLab, tcg_policy: Path, tmp_path: Path) -> RemedyHost:
    lab.clear()
    return RemedyHost(lab, tmp_path, remedies_policy(tcg_policy, tmp_path / "policy.yaml", _NO_APPROVAL))


def test_exactly_what_may_be_fixed_is_fixed_and_an_undo_leaves_no_trace(host: RemedyHost, tmp_path: Path) -> None:
    guests = _guests()
    host.lab.define(*guests.values())
    host.lab.start("fix-00", "fix-01", "fix-02", "leave-on-0", "leave-off-0")
    host.lab.start_transient(guest_xml("transient", mode="maximum"))
    host.lab.start("fix-03")
    host.lab.save("fix-03")
    before = host.definitions()
    running = {name: host.lab.pid(uuid_of(name)) for name in ("fix-00", "fix-01", "fix-02", "leave-on-0")}
    assert before["fix-00"].count(_PASSWORD) == 1

    plan = host.plan(tmp_path / "plan.json")
    assert sorted(step["subject"]["name"] for step in plan["steps"]) == sorted(name for name in guests if name.startswith("fix-"))
    why = {left["subject"]["name"]: left["because"] for left in plan["left_alone"] if left["remedy"] == "domain_pmu_off"}
    assert {name: why[f"leave-{name}-0"] for name in ("on", "nova", "locked", "unknown")} == {
        "on": "opted_out",
        "nova": "nova_owned",
        "locked": "locked",
        "unknown": "unknown_owner",
    }
    assert not any(name.startswith(("leave-off", "leave-named")) for name in why)

    applied = host.run("apply", tmp_path / "plan.json")
    assert applied.exit_code == 0, applied.stderr
    after = host.definitions()
    assert {name for name in before if before[name] != after[name]} == {name for name in guests if name.startswith("fix-")}
    assert all(after[name].count(_PMU_OFF) == 1 for name in guests if name.startswith("fix-"))
    assert after["fix-00"].count(_PASSWORD) == 1
    assert {name: host.lab.pid(uuid_of(name)) for name in running} == running
    kept = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file() and "policy" not in path.name)
    assert _PASSWORD not in kept

    [run_id] = host.runs()
    assert host.plan()["steps"] == []
    assert host.run("apply", "--here").exit_code == 0
    assert host.runs() == [run_id]
    again = host.run("apply", tmp_path / "plan.json")  # the old plan once more: every step is found done
    assert again.exit_code == 0, again.stderr
    assert not any(event["kind"] == "steps_started" for event in host.journal(host.runs()[-1]))

    undone = host.run("rollback", run_id)
    assert undone.exit_code == 0, undone.stderr
    assert host.definitions() == before
    assert {name: host.lab.pid(uuid_of(name)) for name in running} == running

    forward_again = host.run("rollback", host.runs()[-1])  # it would be a way around plan and approval
    assert forward_again.exit_code == 1
    assert "itself an undo" in forward_again.stderr
    assert host.definitions() == before


def test_a_plan_waits_for_an_approval_of_exactly_itself_and_an_approval_is_good_once(
    host: RemedyHost, tcg_policy: Path, tmp_path: Path
) -> None:
    asks = RemedyHost(host.lab, host.home, remedies_policy(tcg_policy, tmp_path / "asks.yaml", "{approval: required}"))
    host.lab.define(guest_xml("fix-00", mode="maximum"))
    before = host.definitions()
    waiting = asks.run("apply", "--here")
    assert waiting.exit_code == 3, waiting.stderr
    [kept] = (asks.remedy_dir / "plans").iterdir()
    assert str(kept) in waiting.stderr

    assert asks.run("approve", kept, "--approver", "ada").exit_code == 0
    host.lab.define(guest_xml("fix-01", mode="maximum"))  # now it is another plan
    assert asks.run("apply", "--here").exit_code == 3
    assert host.definitions()["fix-00"] == before["fix-00"]

    newer = next(path for path in (asks.remedy_dir / "plans").iterdir() if path != kept)
    assert asks.run("approve", newer, "--approver", "ada").exit_code == 0
    done = asks.run("apply", "--here")
    assert done.exit_code == 0, done.stderr
    assert all(_PMU_OFF in xml for xml in host.definitions().values())
    assert asks.run("apply", newer).exit_code == 3  # spent


def test_a_host_that_goes_by_another_id_than_before_is_not_touched(host: RemedyHost) -> None:
    host.lab.define(guest_xml("fix-00", mode="maximum"))
    host.remedy_dir.mkdir(mode=0o700)
    (host.remedy_dir / "host-id").write_text("00000000-0000-4000-8000-000000000000\n")
    refused = host.run("apply", "--here")
    assert refused.exit_code == 1
    assert "first dealt with as 00000000" in refused.stderr
    assert _PMU_OFF not in host.definitions()["fix-00"]


def test_what_the_plan_rests_on_is_looked_at_again_right_before_the_step(host: RemedyHost, tmp_path: Path) -> None:
    host.lab.define(*(guest_xml(name, mode="maximum") for name in ("fix-00", "fix-01", "fix-02")))
    host.plan(tmp_path / "plan.json")
    locked = guest_xml("fix-01", mode="maximum", metadata=LOCKED_METADATA)
    host.lab.define(locked)
    with host.lab.connection() as connection:
        connection.lookupByName("fix-02").undefine()
    applied = host.run("apply", tmp_path / "plan.json")
    assert applied.exit_code == 3, applied.stderr
    assert "2 of its steps were not carried out" in applied.stderr
    assert {name: _PMU_OFF in xml for name, xml in host.definitions().items()} == {"fix-00": True, "fix-01": False}
    checked = next(event for event in host.journal(host.runs()[0]) if event["kind"] == "host_checked")
    assert "leave alone" in checked["reason"]
    assert "gone" in checked["reason"]


def _ended_as_it_should(host: RemedyHost, guests: list[str]) -> None:
    """Every guest is done, no step was started twice without a look in between, and the run is over."""
    assert {name: _PMU_OFF in xml for name, xml in host.definitions().items()} == dict.fromkeys(guests, True)
    [run_id] = host.runs()
    events = host.journal(run_id)
    assert events[-1]["kind"] == "finished"
    open_steps: set[str] = set()
    done: set[str] = set()
    for event in events:
        if event["kind"] == "steps_started":
            assert not open_steps & set(event["steps"])
            assert not done & set(event["steps"])
            open_steps |= set(event["steps"])
        elif event["kind"] in ("step_finished", "step_settled"):
            open_steps.discard(event["step"])
            if event["outcome"] in ("done", "already"):
                done.add(event["step"])
    assert not open_steps


def _finish(host: RemedyHost, plan: Path) -> None:
    """What an operator would do after a crash: go on with the run, or begin it where there is none yet."""
    if not host.runs():
        assert host.run("apply", plan).exit_code == 0
        return
    result = host.run("rollout", "resume", host.runs()[-1])
    assert result.exit_code == 0 or "is over" in result.stderr, result.stderr
    # Where Ansible was killed and not the agent, the run stopped, and that was its operator's word to go on.


_CRASHED = ["fix-00", "fix-01"]
_ANNOUNCED = 4


@pytest.fixture(scope="module")
def crash_plan(lab: LibvirtLab, tcg_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for the guests that the crash tests define anew each time: the same guests, the same steps."""
    home = tmp_path_factory.mktemp("crash")
    lab.clear()
    lab.define(*(guest_xml(name, mode="maximum") for name in _CRASHED))
    RemedyHost(lab, home, remedies_policy(tcg_policy, home / "policy.yaml", _NO_APPROVAL)).plan(home / "plan.json")
    return home / "plan.json"


# Nine lines: started, batch, checked, announced (_ANNOUNCED), two steps, verified, wave passed, finished.
@pytest.mark.parametrize("lines", range(1, 10))
def test_a_crash_at_every_line_of_the_journal_comes_to_the_same_end(crash_plan: Path, host: RemedyHost, lines: int) -> None:
    host.lab.define(*(guest_xml(name, mode="maximum") for name in _CRASHED))
    before = host.definitions()
    host.run("apply", crash_plan, die_after=lines)
    _finish(host, crash_plan)
    _ended_as_it_should(host, _CRASHED)
    if lines == _ANNOUNCED + 1:  # one step was done and heard of, the other done and not
        assert host.run("rollback", host.runs()[-1]).exit_code == 0
        assert host.definitions() == before


@pytest.mark.parametrize("seed", range(int(os.environ.get("EXITGUARD_TEST_KILLS", "20"))))
def test_a_kill_at_any_moment_comes_to_the_same_end(crash_plan: Path, host: RemedyHost, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a seed, so that a failure can be repeated
    host.lab.define(*(guest_xml(name, mode="maximum") for name in _CRASHED))
    with host.start("apply", crash_plan) as process:
        kill_within(process, chance.uniform(0.5, 6.0), chance)
    _finish(host, crash_plan)
    _ended_as_it_should(host, _CRASHED)
