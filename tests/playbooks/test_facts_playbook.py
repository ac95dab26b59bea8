"""playbooks/facts.yml, played by the real ansible-playbook over a local connection, and over SSH to hosts with libvirt domains."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PLAYBOOK = Path(__file__).resolve().parents[2] / "playbooks" / "facts.yml"
PROGRAMS = Path(sys.executable).parent
sys.path.append(str(PLAYBOOK.parents[1] / "tests" / "integration"))  # the hosts are theirs

from domain_documents import guest_xml, uuid_of  # noqa: E402 - found by the line above
from ssh_hosts import SshHost, SshLab, ssh_hosts, why_no_ssh_hosts  # noqa: E402 - as above

from exitguard.model.documents import FactsDocument  # noqa: E402 - as above

pytestmark = pytest.mark.integration

_LIMIT_SECONDS = 120
#: What a host of the lab is given before it counts as hung; the same in each play, since plays share their connections.
_SILENCE_SECONDS = 4


@dataclass(frozen=True)
class Play:
    """What one play said and brought home."""

    result: "subprocess.CompletedProcess[str]"
    folder: Path

    @property
    def words(self) -> str:
        """All that it said, its line breaks folded."""
        return " ".join((self.result.stdout + self.result.stderr).split())

    def file(self, host: str) -> Path:
        return self.folder / "facts" / f"{host}.json"

    def facts(self, host: str) -> FactsDocument:
        assert self.file(host).exists(), self.result.stdout + self.result.stderr
        return FactsDocument.model_validate_json(self.file(host).read_text())

    def recap(self, host: str) -> dict[str, int]:
        line = next(line for line in self.result.stdout.rpartition("PLAY RECAP")[2].splitlines() if line.startswith(host))
        return {name: int(count) for name, _, count in (word.partition("=") for word in line.partition(":")[2].split())}


def play(folder: Path, inventory: Path, *options: str, environment: dict[str, str] | None = None, **variables: object) -> Play:
    """One play that is started in `folder`; `environment` is what it gets beside the usual."""
    command = [str(PROGRAMS / "ansible-playbook"), "-i", str(inventory), "-e", json.dumps(variables), *options, str(PLAYBOOK)]
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV", "EXITGUARD_"))}
    usual |= {
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "EXITGUARD_STATE_DIR": str(folder / "state"),
        "LC_ALL": "C.UTF-8",
        "PWD": str(folder),
        **(environment or {}),
    }
    result = subprocess.run(
        command, cwd=folder, env=usual, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    return Play(result, folder)


def play_here(folder: Path, commands: dict[str, Path | str], *options: str, **variables: object) -> Play:
    """One play over several hosts that all are this machine, each with a program of its own in exitguard's place."""
    inventory = folder / "inventory.yml"
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "exitguard_become": False}
    hosts = {name: {"exitguard_command": str(command)} for name, command in commands.items()}
    inventory.write_text(json.dumps({"all": {"vars": common, "hosts": hosts}}))
    return play(folder, inventory, *options, environment={"EXITGUARD_CONNECT": "test:///default"}, **variables)


def stand_in(folder: Path, name: str, body: str) -> Path:
    """A program in exitguard's place, for the answers that a sound host does not give."""
    program = folder / name
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo exitguard 9\n{body}\n')
    program.chmod(0o755)
    return program


def left_by_an_earlier_run(folder: Path, host: str) -> Path:
    old = folder / "facts" / f"{host}.json"
    old.parent.mkdir(exist_ok=True)
    old.write_text('{"of": "an earlier run"}\n')
    return old


# --- over a local connection -----------------------------------------------------------------------------------------------------

_LIMIT_BYTES = 5000
_LARGEST = json.dumps({"text": "x" * 4987})
_HOSTILE = json.dumps({"domains": [{"name": "{{ lookup('pipe', 'touch owned') }}"}]})
#: By host: what its exitguard does, and what is said of it; None where its facts are taken.
_ANSWERS: dict[str, tuple[str, str | None]] = {
    "fails": ("echo 'config.yaml:3: no such setting' >&2; exit 1", "facts ended with exit code 1: config.yaml:3: no such setting"),
    "welcome": ("echo Welcome", "facts printed no JSON: expected the output of `exitguard facts --format json`"),
    "half": ("echo '{\"half\": '", "facts printed no JSON"),
    "endless": ("exec yes 123456789", f"facts printed more than {_LIMIT_BYTES} bytes, which is more than the facts of any host"),
    "hangs": ("echo '{'; sleep 120; echo '}'", "facts was stopped after 5 seconds"),
    "largest": (f"cat <<'END'\n{_LARGEST}\nEND", None),
    "hostile": (f"cat <<'END'\n{_HOSTILE}\nEND", None),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """One play over all of them and a host without exitguard; each had a file from an earlier run."""
    folder = tmp_path_factory.mktemp("answers")
    commands: dict[str, Path | str] = {name: stand_in(folder, f"exitguard-{name}", body) for name, (body, _) in _ANSWERS.items()}
    commands["without"] = "/nowhere/exitguard"
    for name in commands:
        left_by_an_earlier_run(folder, name)
    return play_here(folder, commands, "--diff", "-vv", facts_limit_bytes=_LIMIT_BYTES, facts_time_limit_seconds=5)


@pytest.mark.parametrize(("host", "words"), [(name, words) for name, (_, words) in _ANSWERS.items() if words is not None])
def test_facts_that_cannot_be_had_are_told_and_no_file_stands_for_them(answered: Play, host: str, words: str) -> None:
    assert f"{host}: not observed. {answered.folder}/exitguard-{host} {words}" in answered.words
    assert answered.recap(host)["failed"] == 1
    assert not answered.file(host).exists()


def test_host_without_exitguard_is_told_and_keeps_no_facts_of_an_earlier_run(answered: Play) -> None:
    assert "without: not observed. /nowhere/exitguard --version gave exit code 127 there" in answered.words
    assert "Install exitguard on the host, or name the installed program with -e exitguard_command=" in answered.words
    assert not answered.file("without").exists()


def test_facts_of_exactly_the_largest_size_are_taken(answered: Play) -> None:
    assert len(_LARGEST) + 1 == _LIMIT_BYTES
    assert answered.file("largest").read_text() == f"{_LARGEST}\n"


def test_text_of_a_guest_is_never_evaluated_nor_shown(answered: Play) -> None:
    assert answered.file("hostile").read_text() == f"{_HOSTILE}\n"
    assert not list(answered.folder.rglob("owned"))
    assert "touch owned" not in answered.words


def test_facts_of_this_machine_are_brought_home_as_they_were_printed_for_their_reader_alone(tmp_path: Path) -> None:
    played = play_here(tmp_path, {"hv1": PROGRAMS / "exitguard"})
    facts = played.facts("hv1")
    assert facts.host.target.uri == "test:///default"
    assert [domain.name for domain in facts.domains] == ["test"]
    assert facts.domains[0].uuid not in played.words  # megabytes of facts are not for the screen
    assert played.file("hv1").read_text().endswith("}\n")
    assert played.file("hv1").stat().st_mode & 0o777 == 0o600
    assert played.file("hv1").parent.stat().st_mode & 0o777 == 0o700
    assert played.result.returncode == 0
    assert not (tmp_path / "state").exists()


def test_check_mode_looks_and_writes_nothing(tmp_path: Path) -> None:
    old = left_by_an_earlier_run(tmp_path, "hv1")
    program = stand_in(tmp_path, "exitguard", f"touch {tmp_path}/looked; echo '{{}}'")
    played = play_here(tmp_path, {"hv1": program}, "--check")
    assert played.result.returncode == 0, played.result.stdout
    assert (tmp_path / "looked").exists()
    assert json.loads(old.read_text()) == {"of": "an earlier run"}
    assert list(old.parent.iterdir()) == [old]


# --- over SSH --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshLab]:
    """Two hosts, each with a libvirtd and a guest that is named after it."""
    missing = why_no_ssh_hosts()
    if missing is not None:
        pytest.skip(missing)
    with ssh_hosts(2, tmp_path_factory.mktemp("fleet")) as lab:
        for host in lab.hosts:
            assert host.libvirt is not None
            host.libvirt.define(guest_xml(f"guest-of-{host.name}", pmu="on"))
            host.libvirt.start(f"guest-of-{host.name}")
        yield lab


def play_fleet(folder: Path, fleet: SshLab, *options: str, **variables: object) -> Play:
    environment = {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(fleet.control_path_dir)}
    return play(folder, fleet.inventory, *options, environment=environment, facts_silence_seconds=_SILENCE_SECONDS, **variables)


def hang_while_it_looks(fleet: SshLab, host: SshHost) -> threading.Thread:
    """From now on the host's exitguard never ends, and the host hangs as soon as it is asked for facts."""
    program, began = host.root / "run/lab/exitguard", host.root / "run/lab/began"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec echo exitguard 9\ntouch /{began.relative_to(host.root)}\nexec sleep 120\n')

    def hang_soon() -> None:
        deadline = time.monotonic() + _LIMIT_SECONDS
        while not began.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        fleet.hang(host)

    thread = threading.Thread(target=hang_soon)
    thread.start()
    return thread


def test_host_is_observed_over_ssh_while_another_cannot_be_reached(fleet: SshLab, tmp_path: Path) -> None:
    fleet.stop_sshd(fleet.host("hv2"))
    try:
        played = play_fleet(tmp_path, fleet)
    finally:
        fleet.start_sshd(fleet.host("hv2"))
    facts = played.facts("hv1")
    assert facts.host.identity.hostname.value == "hv1"
    assert facts.host.kernel.release.value == "6.1.0-56-amd64"
    assert [(domain.uuid, domain.active.value) for domain in facts.domains] == [(uuid_of("guest-of-hv1"), True)]
    assert played.recap("hv1")["failed"] == 0
    assert played.recap("hv2")["unreachable"] == 1
    assert not played.file("hv2").exists()
    assert played.result.returncode == 4


def test_host_that_hangs_in_the_middle_of_a_look_is_given_up_and_holds_up_no_other(fleet: SshLab, tmp_path: Path) -> None:
    host = fleet.host("hv2")
    program = host.root / "run/lab/exitguard"
    sound = program.read_text()
    waiting = hang_while_it_looks(fleet, host)
    try:
        played = play_fleet(tmp_path, fleet, "--timeout", "2")
    finally:
        waiting.join()
        fleet.unhang(host)
        program.write_text(sound)
    assert played.recap("hv2")["unreachable"] + played.recap("hv2")["failed"] == 1, played.result.stdout
    assert not played.file("hv2").exists()
    assert played.facts("hv1").host.identity.hostname.value == "hv1"
