"""The hosts of ssh_hosts.py are what they say: reached by real SSH, apart from this machine and each other, and gone with the test."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from domain_documents import guest_xml, uuid_of
from recorded_exitguard import RecordedKernel
from ssh_hosts import SshLab, ssh_hosts, why_no_ssh_hosts

from exitguard.audit.judge import judge
from exitguard.model.documents import FactsDocument
from exitguard.model.kernel import KernelState
from exitguard.policy.load import load_rulebook

pytestmark = pytest.mark.integration

_KERNELS = (RecordedKernel.AFFECTED, RecordedKernel.GUARDED, RecordedKernel.UNKNOWN)
_LIMIT_SECONDS = 60

# One host, and then nothing but waiting for a signal that cannot be caught.
_KILLED = """
import signal, sys
from pathlib import Path
from ssh_hosts import ssh_hosts

with ssh_hosts(1, Path(sys.argv[1])) as lab:
    print(lab.hosts[0].pid, lab.hosts[0].root, lab.control_path_dir, flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    """Three hosts with a libvirtd each."""
    missing = why_no_ssh_hosts()
    if missing is not None:
        pytest.skip(missing)
    with ssh_hosts(3, tmp_path_factory.mktemp("fleet"), kernels=_KERNELS) as lab:
        yield lab


@pytest.fixture(scope="module")
def observed(fleet: SshLab) -> dict[str, FactsDocument]:
    """What each host tells of itself over SSH, by its name."""
    return {host.name: facts_of(fleet, host.name) for host in fleet.hosts}


def facts_of(lab: SshLab, name: str) -> FactsDocument:
    result = lab.ssh(lab.host(name), "exitguard facts --format json")
    assert result.returncode == 0, result.stderr
    return FactsDocument.model_validate_json(result.stdout)


def test_each_host_has_a_name_and_an_identity_of_its_own(observed: dict[str, FactsDocument]) -> None:
    identities = [facts.host.identity for facts in observed.values()]
    assert [identity.hostname.value for identity in identities] == ["hv1", "hv2", "hv3"]
    assert not any(identity.provisional for identity in identities)
    machine_ids = {identity.machine_id.value for identity in identities}
    assert len(machine_ids) == 3
    assert Path("/etc/machine-id").read_text().strip() not in machine_ids
    assert len({identity.id for identity in identities}) == 3


def test_files_of_a_host_are_its_own_and_those_of_this_machine_cannot_be_written(fleet: SshLab, tmp_path: Path) -> None:
    host, other = fleet.hosts[:2]
    own = ["/etc/exitguard/x", "/etc/x", "/var/lib/exitguard/x", "/boot/x", "/tmp/x", "/run/x"]  # noqa: S108 - the host's
    assert fleet.ssh(host, f"touch {' '.join(own)} ~/x").returncode == 0
    for path in (*own, "/run/root/x"):
        assert (host.root / path[1:]).exists()
        assert not (other.root / path[1:]).exists()
        assert not Path(path).exists()
    refused = fleet.ssh(host, "touch /usr/x /var/lib/dpkg/x /root/x")
    assert refused.stderr.count("Read-only file system") == 3
    assert fleet.ssh(host, f"ls {tmp_path}").returncode != 0


def test_host_sees_no_process_and_no_network_but_its_own(fleet: SshLab) -> None:
    host = fleet.hosts[0]
    seen = {int(word) for word in fleet.ssh(host, "cd /proc && echo [0-9]*").stdout.split()}
    assert 1 in seen
    assert len(seen) < 20
    links = json.loads(fleet.ssh(host, "ip -json address").stdout)
    assert {address["local"] for link in links for address in link["addr_info"]} <= {"127.0.0.1", "::1"}
    with contextlib.closing(socket.socket()) as here, pytest.raises(ConnectionRefusedError):
        here.connect((host.address, host.port))


def test_domain_that_is_defined_on_a_host_is_seen_through_ssh_on_that_host_alone(fleet: SshLab) -> None:
    host, other = fleet.hosts[:2]
    assert host.libvirt is not None
    host.libvirt.define(guest_xml("web-1", pmu="on"))
    host.libvirt.start("web-1")
    try:
        found = facts_of(fleet, host.name).domains
        assert [(domain.uuid, domain.name, domain.active.value) for domain in found] == [(uuid_of("web-1"), "web-1", True)]
        assert facts_of(fleet, other.name).domains == ()
        assert fleet.run(host, ["virsh", "-q", "domstate", "web-1"]).stdout.strip() == "paused"
    finally:
        host.libvirt.clear()


def test_kernel_of_a_host_is_the_recorded_one(fleet: SshLab, observed: dict[str, FactsDocument]) -> None:
    rulebook = load_rulebook((), ())
    states = [judge(facts, rulebook).host.kernel.state for facts in observed.values()]
    assert states == [KernelState.AFFECTED, KernelState.GUARDED, KernelState.UNKNOWN]
    host = fleet.hosts[0]
    try:
        fleet.pretend(host, RecordedKernel.EQUIVALENT)
        assert judge(facts_of(fleet, host.name), rulebook).host.kernel.state is KernelState.EQUIVALENT
    finally:
        fleet.pretend(host, RecordedKernel.AFFECTED)


def test_command_of_a_host_tells_the_version_of_the_product(fleet: SshLab) -> None:
    product = subprocess.run([sys.executable, "-m", "exitguard", "--version"], capture_output=True, text=True, check=True)
    assert fleet.ssh(fleet.hosts[0], "exitguard --version").stdout == product.stdout


def test_host_with_a_stopped_sshd_refuses_and_comes_back(fleet: SshLab) -> None:
    host = fleet.hosts[1]
    fleet.stop_sshd(host)
    refused = fleet.ssh(host, "true")
    assert refused.returncode == 255
    assert "Connection refused" in refused.stderr
    fleet.start_sshd(host)
    assert fleet.ssh(host, "hostname").stdout == "hv2\n"


def test_hung_host_takes_a_connection_and_says_nothing(fleet: SshLab) -> None:
    host = fleet.hosts[2]
    fleet.hang(host)
    try:
        silent = fleet.ssh(host, "true", "-oConnectTimeout=1")
        assert silent.returncode == 255
        assert "timed out during banner exchange" in silent.stderr
    finally:
        fleet.unhang(host)
    assert fleet.ssh(host, "hostname").stdout == "hv3\n"


def test_host_that_is_not_the_one_it_was_is_not_logged_in_to(fleet: SshLab, tmp_path: Path) -> None:
    forgotten = tmp_path / "known_hosts"
    forgotten.write_text("")
    result = fleet.ssh(fleet.hosts[0], "true", f"-oUserKnownHostsFile={forgotten}")
    assert result.returncode == 255
    assert "Host key verification failed" in result.stderr


def test_ansible_reaches_every_host_of_the_inventory(fleet: SshLab, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ansible",
        "adhoc",
        "all",
        "-i",
        str(fleet.inventory),
        "-m",
        "ansible.builtin.command",
        "-a",
        "hostname",
    ]
    environment = {**os.environ, "ANSIBLE_HOME": str(tmp_path / "ansible"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
    environment |= {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(fleet.control_path_dir)}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    answers = [line for line in result.stdout.splitlines() if "|" not in line]
    assert sorted(answers) == ["hv1", "hv2", "hv3"]
    inventory = json.loads(fleet.inventory.read_text())["all"]
    assert set(inventory["hosts"]) == {"hv1", "hv2", "hv3"}


def test_everything_ends_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    missing = why_no_ssh_hosts()
    if missing is not None:
        pytest.skip(missing)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pid, *left = process.stdout.readline().split()
        namespace = Path(f"/proc/{pid}/ns/pid").readlink()
        assert len(processes_in(namespace)) >= 4  # the first one, libvirtd, sshd, and the one that holds the host's own namespaces
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + _LIMIT_SECONDS
    while processes_in(namespace):
        assert time.monotonic() < deadline, processes_in(namespace)
        time.sleep(0.05)
    for folder in left:  # of a killed process nobody else removes them
        shutil.rmtree(folder)


def processes_in(namespace: Path) -> set[int]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if (entry / "ns/pid").readlink() == namespace:
                found.add(int(entry.name))
    return found
