"""The privileged unit for real: the daemon finds something to do, systemd starts the unit, a person approves, and the guest goes on.

One way through it, for each start takes an emulated processor many seconds: every fixture is one station, and builds on the one before.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from audit_service import SETTINGS, STATE_DIR, AuditService
from guests import REMOVE_WEB, START_WEB, WEB_UUID, write_web
from machine import Machine
from remedy_unit import MAINTENANCE, REMEDY_DIR, Ended, RemedyUnit

# Emulated processors, and audits that are a minute apart.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

POLICY = "/etc/exitguard/policy.yaml"
PROPOSAL = f"{STATE_DIR}/proposal"
OFF = "<pmu state='off'/>"
#: linux/capability.h: what no step needs, and what would let it load a module, reboot, or set the clock.
CAP_SYS_MODULE, CAP_SYS_BOOT, CAP_SYS_TIME = 16, 22, 25


@dataclass(frozen=True)
class Web:
    """A guest that libvirt owns, on a host whose PMU its guests could have."""

    service: AuditService
    unit: RemedyUnit
    #: Its definition and its QEMU, before anything was done.
    before: str
    pid: str

    @property
    def machine(self) -> Machine:
        return self.service.machine

    def is_as_before(self) -> bool:
        return definition(self.machine) == self.before and process(self.machine) == self.pid


def definition(machine: Machine) -> str:
    return machine.output("virsh dumpxml web --inactive --security-info")


def process(machine: Machine) -> str:
    return machine.output("pgrep --full 'guest=[w]eb,'").strip()


def as_exitguard(machine: Machine, command: str) -> str:
    """What a shell of the audit service's user says to a command, errors included."""
    done = machine.run(f"runuser --user exitguard -- sh -c {shlex.quote(command)}")
    return done.stdout + done.stderr


def set_enable_pmu(machine: Machine, value: bytes) -> None:
    """What kvm.enable_pmu would say where the processor has a PMU: an emulated one has none, so that KVM gives none to any guest."""
    machine.output("modprobe kvm_amd")
    address = machine.output("grep --word-regexp 'enable_pmu.*kvm' /proc/kallsyms").split()[0]
    machine.write_kernel_memory(int(address, 16), value)


@pytest.fixture(scope="module")
def web(installed_service: AuditService) -> Iterator[Web]:
    """The guest, running; the unit, watching."""
    service, machine = installed_service, installed_service.machine
    service.restore()
    unit = RemedyUnit(machine)
    write_web(machine)
    set_enable_pmu(machine, b"\1")
    try:
        unit.watch()
        machine.output(START_WEB)
        yield Web(service, unit, definition(machine), process(machine))
    finally:
        unit.restore()
        machine.run(f"{REMOVE_WEB}; rm -f {PROPOSAL} {POLICY}")
        set_enable_pmu(machine, b"\0")
        service.restore()


# --- proposed -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proposed:
    """The first start, after the daemon's word."""

    status: dict[str, list[str]]
    ended: Ended
    plan: str


@pytest.fixture(scope="module")
def proposed(web: Web) -> Proposed:
    pid = web.unit.wait_for_start()
    lines = web.machine.output(f"cat /proc/{pid}/status").splitlines()
    status = {name: words.split() for name, _, words in (line.partition(":") for line in lines)}
    return Proposed(status, web.unit.wait_for_end(), f"{REMEDY_DIR}/plans/{web.unit.files('plans')[0]}")


def test_what_the_daemon_finds_is_planned_and_waits_for_approval(web: Web, proposed: Proposed) -> None:
    assert (proposed.ended.state, proposed.ended.result, proposed.ended.code) == ("inactive", "success", 3), proposed.ended.said
    assert f"the plan {proposed.plan}" in proposed.ended.said
    assert web.machine.output(f"stat --format '%a %U' {proposed.plan}").split() == ["600", "root"]
    assert WEB_UUID in web.machine.output(f"cat {proposed.plan}")
    assert web.unit.files("runs") == []
    assert web.is_as_before()


def test_it_is_root_without_what_no_step_needs(proposed: Proposed) -> None:
    assert set(proposed.status["Uid"]) == {"0"}
    bounding = int(proposed.status["CapBnd"][0], 16)
    assert [capability for capability in (CAP_SYS_MODULE, CAP_SYS_BOOT, CAP_SYS_TIME) if bounding >> capability & 1] == []
    assert proposed.status["Seccomp"] == ["2"]


@pytest.mark.parametrize("place", [f"{REMEDY_DIR}/approvals/one.json", f"{REMEDY_DIR}/plans/one.json", "/run/exitguard/one", POLICY])
def test_the_daemon_s_user_can_lay_down_nothing_that_counts(web: Web, place: str) -> None:
    assert "Permission denied" in as_exitguard(web.machine, f"echo approved >{place}")


def test_what_the_daemon_s_user_proposes_is_never_read(web: Web, proposed: Proposed) -> None:
    machine = web.machine
    machine.output(f"sed s/required/none/ {proposed.plan} >/tmp/plan && chmod 644 /tmp/plan")
    as_exitguard(machine, f"(cat /tmp/plan; echo; echo touch /root/carried-out) >{PROPOSAL}")
    read_at = f"stat --format %x {PROPOSAL}"  # of a file that was written since, the first reading is noted
    before = machine.output(read_at)
    ended = web.unit.wait_for_end()
    assert (ended.result, ended.code) == ("success", 3), ended.said
    assert web.unit.files("runs") == []
    assert web.is_as_before()
    assert machine.output(read_at) == before
    assert "touch /root/carried-out" in machine.output(f"cat {PROPOSAL}")
    assert machine.output(read_at) != before, "a reading is seen here"
    assert not machine.succeeds("test -e /root/carried-out")


# --- approved -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Approved:
    ended: Ended
    run_id: str


@pytest.fixture(scope="module")
def approved(web: Web, proposed: Proposed) -> Approved:
    web.machine.output(f"exitguard approve {proposed.plan} --approver ada")
    ended = web.unit.wait_for_end()
    return Approved(ended, web.unit.files("runs")[0])


def test_approved_plan_is_carried_out_and_the_running_guest_goes_on(web: Web, approved: Approved) -> None:
    assert (approved.ended.state, approved.ended.code) == ("inactive", 0), approved.ended.said
    assert f"Run {approved.run_id} is done" in approved.ended.said
    assert web.unit.events(approved.run_id)[-1]["kind"] == "finished"
    now = definition(web.machine)
    assert OFF in now
    assert [line for line in now.splitlines() if line not in web.before.splitlines()] == ["  <features>", f"    {OFF}", "  </features>"]
    assert process(web.machine) == web.pid


def test_approval_is_spent(web: Web, proposed: Proposed, approved: Approved) -> None:
    assert web.unit.files("approvals") == []
    plan_hash = proposed.plan.rpartition("/")[2].removesuffix(".json")
    assert web.unit.files("approvals/used") == [f"{plan_hash}-{approved.run_id}.json"]


# --- undone ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RolledBack:
    """The definition after the rollback, and the start that follows when the daemon has found it."""

    definition: str
    proposed_in_between: int
    ended: Ended


@pytest.fixture(scope="module")
def rolled_back(web: Web, approved: Approved) -> RolledBack:
    service, machine = web.service, web.machine
    mark = service.mark()
    service.wait_for_audit(mark)
    proposed_in_between = len(service.events(mark, "plan.proposed"))
    machine.output(f"exitguard rollback {approved.run_id}", timeout=300)
    restored = definition(machine)
    service.wait_for(mark, "plan.proposed", steps=1)
    return RolledBack(restored, proposed_in_between, web.unit.wait_for_end())


def test_what_is_done_is_not_proposed_and_rollback_restores_the_definition(web: Web, rolled_back: RolledBack) -> None:
    assert rolled_back.proposed_in_between == 0
    assert rolled_back.definition == web.before
    assert process(web.machine) == web.pid


def test_same_plan_waits_for_another_approval(web: Web, approved: Approved, rolled_back: RolledBack) -> None:
    ended = rolled_back.ended
    assert (ended.result, ended.code) == ("success", 3), ended.said
    assert f"run {approved.run_id} has used its approval" in ended.said
    assert len(web.unit.files("runs")) == 2, "the first, and its rollback"


# --- without asking -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maintained(web: Web, rolled_back: RolledBack) -> Ended:
    """A start in maintenance, with a policy that asks nobody. The mark stays."""
    assert rolled_back
    service, machine = web.service, web.machine
    machine.write(MAINTENANCE, "disks are exchanged\n")
    machine.output(f"(cat $(find /opt/exitguard -name pmu-off.yaml); echo 'remedies: {{approval: none}}') >{POLICY}")
    service.configure(f"{SETTINGS}policy_files: [{POLICY}]\n")
    mark = service.mark()
    service.reload()
    ended = web.unit.start()
    service.wait_for_audit(mark)
    return ended


def test_nothing_is_begun_on_a_host_in_maintenance(web: Web, maintained: Ended) -> None:
    assert (maintained.result, maintained.code) == ("success", 0), maintained.said
    assert "Nothing to do on this host" in maintained.said
    assert len(web.unit.files("runs")) == 2, "the first, and its rollback"
    assert web.is_as_before()


def test_killed_in_mid_run_it_leaves_no_process_and_the_next_start_ends_the_run(web: Web, maintained: Ended) -> None:
    assert maintained
    machine, unit = web.machine, web.unit
    runs = set(unit.files("runs"))
    ansible = "pgrep --full '[a]nsible'"
    machine.output(f"rm {MAINTENANCE}")  # then the daemon finds something to do, and nobody is asked
    machine.wait_until("Ansible runs", lambda: machine.succeeds(ansible), every=0.2)
    machine.output("systemctl kill --kill-whom=main --signal=KILL exitguard-remedy.service")
    ended = unit.wait_for_end()
    assert (ended.state, ended.result, ended.code) == ("failed", "signal", 9), ended.said
    machine.wait_until("no process of Ansible's is left", lambda: not machine.succeeds(ansible), timeout=20)
    (run_id,) = set(unit.files("runs")) - runs
    assert unit.events(run_id)[-1]["kind"] == "steps_started"

    ended = unit.start()
    assert (ended.state, ended.code) == ("inactive", 0), ended.said
    assert set(unit.files("runs")) - runs == {run_id}, "the same run"
    kinds = [event["kind"] for event in unit.events(run_id)]
    assert (kinds.count("resumed"), kinds.count("step_settled"), kinds[-1]) == (1, 1, "finished"), kinds
    assert OFF in definition(machine)
    assert process(machine) == web.pid
