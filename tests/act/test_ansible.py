"""run_playbook with the real Ansible: what it tells of hosts that do well, badly, late, never, or lie."""

import base64
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from exitguard.act.ansible import HostOutcome, HostResult, PlaybookResult, PlaybookRun, run_playbook
from exitguard.act.ansible_process.messages import COLLECTED_LIMIT_BYTES

pytestmark = pytest.mark.integration

PLAYBOOKS = Path(__file__).with_name("playbooks")
SECRET = "grapefruit-9d2c"  # noqa: S105 - of nothing
OF_ENVIRONMENT = "kumquat-71aa"
#: Of the inventory's hosts; the one that is not there is `absent`.
HERE = f"ansible_connection: local, ansible_python_interpreter: {sys.executable}"
STEP = {"subject": "host", "outcome": "done", "reason": "", "undo": None}


def inventory(folder: Path, *hosts: str, more: str = "") -> Path:
    path = folder / "inventory.yml"
    lines = "".join(f"        {host}: {{{HERE}, tone: inventory}}\n" for host in hosts)
    path.write_text(f"all:\n  vars: {{tone: all}}\n  children:\n    some:\n      hosts:\n{lines}{more}")
    return path


def forged(event: dict[str, Any]) -> str:
    """What ansible-runner's callback plugin writes to name an event, here with an event of a host's making."""
    text = base64.b64encode(json.dumps({"uuid": "00000000-0000-4000-8000-000000000000", **event}).encode()).decode()
    return f"\x1b[K{text}\x1b[{len(text)}D\x1b[K"


LIES = forged({"event": "runner_on_failed", "event_data": {"host": "plain", "task": "Lie", "res": {"msg": "the forger says so"}}}) + forged(
    {"event": "playbook_on_stats", "event_data": {"processed": {"forger": 1}, "failures": {"plain": 1}, "dark": {}, "changed": {}}}
)
VARIABLES: dict[str, dict[str, Any]] = {
    "plain": {"wanted": {"result": {"exitguard": {"steps": [STEP]}, "msg": "well"}}},
    "changing": {"wanted": {"result": {"changed": True}}},
    "failing": {"wanted": {"result": {"failed": True, "msg": "no\x1b[31m room\u202e\nleft", "exitguard": {"steps": [STEP]}}}},
    "wordy": {"wanted": {"result": {"failed": True, "msg": "words " * 9000}}},
    "late": {"wanted": {"hang_after": "", "stubborn": True}, "seconds": 3},
    "gone": {"wanted": {}},
    "rescued": {"wanted": {"result": {"failed": True, "msg": "fell"}}, "afterwards": {"result": {"exitguard": {"stood": "up"}}}},
    "forgiven": {"wanted": {"result": {"failed": True, "msg": "forgiven", "exitguard": {"kept": True}}}, "forgiven": True},
    "secretive": {"wanted": {"result": {"failed": True, "msg": SECRET}}, "secret": True},
    "looping": {
        "wanted": {},
        "turns": [
            {"result": {"exitguard": {"turn": 1}}},
            {"result": {"failed": True, "msg": "second turn"}},
            {"result": {"exitguard": {"turn": 3}}},
        ],
    },
    "loud": {"wanted": {"output_bytes": 10_000_000, "result": {"exitguard": {"heard": True}}}},
    "louder": {"wanted": {"collected_bytes": COLLECTED_LIMIT_BYTES}},
    "deep": {"wanted": {"levels": 40}},
    "deeper": {"wanted": {"levels": 300}},
    "broken": {"wanted": {"raw": '{"exitguard": ' + "[" * 100_000}},
    "odd": {"wanted": {"raw": '{"changed": false, "exitguard": {"number": NaN}}'}},
    "forger": {"wanted": {"result": {"failed": True, "msg": LIES}}},
    "templated": {"wanted": {"result": {"exitguard": {"text": "{{ 6 * 7 }} é \U0001f600 \x7f"}}}, "tone": "run"},
}


@dataclass
class Mixed:
    """One run over hosts of every kind, and what was seen while it went on."""

    result: PlaybookResult
    directory: Path
    log: Path
    progress: list[tuple[str, str, str]] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    words: str = ""
    written: str = ""

    def host(self, name: str) -> HostResult:
        return self.result.hosts[name]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("mixed")
    directory = folder / "runs"
    log = folder / "ansible.log"
    (folder / "callbacks").mkdir()
    (folder / "callbacks" / "spy.py").write_text(
        "from ansible.plugins.callback import CallbackBase\n"
        "class CallbackModule(CallbackBase):\n    CALLBACK_TYPE = 'notification'\n    CALLBACK_NAME = 'spy'\n"
        f"    def __init__(self):\n        super().__init__()\n        open({str(folder / 'spied')!r}, 'w').close()\n"
    )
    settings = {"log_path": log, "callback_plugins": folder / "callbacks", "callbacks_enabled": "spy, profile_tasks", "force_color": 1}
    (folder / "chosen.cfg").write_text("[defaults]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    gone = "        gone: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 1}\n"
    seen = Mixed(PlaybookResult({}, "broken"), directory, log)

    def look(host: str, task: str, status: str) -> None:
        seen.progress.append((host, task, status))
        if len(seen.progress) == 1:
            files = [path for path in directory.rglob("*") if not path.is_symlink()]
            seen.modes = {str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode) for path in [directory, *files]}
            seen.words = " ".join(text_of(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
            seen.written = everything_in(directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANSIBLE_CONFIG", str(folder / "chosen.cfg"))
        patch.setenv("SOME_PASSWORD", OF_ENVIRONMENT)
        variables = {**VARIABLES, "late": {**VARIABLES["late"], "wanted": {"stubborn": True, "hang_after": str(folder / "late")}}}
        run = PlaybookRun(
            playbook=PLAYBOOKS / "say.yml",
            hosts=(*VARIABLES, "absent"),
            inventory=inventory(folder, *(host for host in VARIABLES if host != "gone"), "bystander", more=gone),
            variables=variables,
            common={"spoken_password": SECRET},
            forks=8,
            timeout_seconds=200,
        )
        seen.result = run_playbook(run, directory, progress=look)
    yield seen
    assert not (folder / "spied").exists(), "a callback plugin of the user's was loaded"


def text_of(path: Path) -> str:
    """What the file holds; nothing where it, or the process it tells of, is gone meanwhile."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def everything_in(directory: Path) -> str:
    return "".join(text_of(path) for path in directory.rglob("*") if path.is_file())


def test_host_that_does_well_is_ok_with_what_it_collected(mixed: Mixed) -> None:
    assert mixed.result.ended == "completed"
    assert mixed.result.reason == ""
    assert mixed.host("plain") == HostResult("plain", HostOutcome.OK, collected=({"steps": [STEP]},))


def test_change_is_told(mixed: Mixed) -> None:
    assert mixed.host("changing").changed
    assert not mixed.host("plain").changed


def test_failed_host_has_a_reason_on_one_line_without_control_characters_and_keeps_what_it_collected(mixed: Mixed) -> None:
    failing = mixed.host("failing")
    assert failing.outcome is HostOutcome.FAILED
    assert failing.reason == "Speak: no [31m room left"
    assert failing.collected == ({"steps": [STEP]},)


def test_long_reason_is_cut(mixed: Mixed) -> None:
    assert mixed.host("wordy").outcome is HostOutcome.FAILED
    assert 1000 < len(mixed.host("wordy").reason) <= 2000


def test_host_that_nobody_answers_for_is_unreachable(mixed: Mixed) -> None:
    assert mixed.host("gone").outcome is HostOutcome.UNREACHABLE
    assert "port 1: Connection refused" in mixed.host("gone").reason


def test_task_with_a_time_limit_is_timed_out_and_its_module_is_gone(mixed: Mixed) -> None:
    assert mixed.host("late").outcome is HostOutcome.TIMED_OUT
    assert "Timed out after 3 second" in mixed.host("late").reason
    pid = (mixed.directory.parent / "late").read_text()
    assert not Path(f"/proc/{pid}/exe").exists()


def test_host_that_the_inventory_lacks_is_missing(mixed: Mixed) -> None:
    assert mixed.host("absent").outcome is HostOutcome.MISSING
    assert "the inventory does not have it" in mixed.host("absent").reason


def test_host_that_was_not_asked_for_is_left_alone(mixed: Mixed) -> None:
    assert "bystander" not in mixed.result.hosts
    assert "bystander" not in {host for host, _, _ in mixed.progress}


@pytest.mark.parametrize(("host", "collected"), [("rescued", {"stood": "up"}), ("forgiven", {"kept": True})])
def test_failure_that_the_playbook_deals_with_is_none(mixed: Mixed, host: str, collected: dict[str, Any]) -> None:
    assert mixed.host(host) == HostResult(host, HostOutcome.OK, collected=(collected,))


def test_result_without_log_stays_hidden(mixed: Mixed) -> None:
    assert mixed.host("secretive").outcome is HostOutcome.FAILED
    assert "no_log" in mixed.host("secretive").reason
    assert SECRET not in mixed.host("secretive").reason


def test_loop_is_collected_item_by_item_and_fails_for_its_item(mixed: Mixed) -> None:
    looping = mixed.host("looping")
    assert looping.outcome is HostOutcome.FAILED
    assert looping.reason == "Speak in turn: second turn"
    assert looping.collected == ({"turn": 1}, {"turn": 3})


def test_ten_megabytes_of_output_do_not_hide_what_is_collected(mixed: Mixed) -> None:
    assert mixed.host("loud") == HostResult("loud", HostOutcome.OK, collected=({"heard": True},))


@pytest.mark.parametrize(("host", "why"), [("louder", "more than 8388608 bytes"), ("deep", "more than 32 levels deep")])
def test_result_that_cannot_be_kept_is_told(mixed: Mixed, host: str, why: str) -> None:
    assert mixed.host(host).collected == ()
    assert f"Speak: what it has under `exitguard` cannot be kept: {why}" in mixed.host(host).reason


@pytest.mark.parametrize("host", ["broken", "odd", "deeper"])
def test_answer_that_nobody_can_read_collects_nothing_and_harms_no_other_host(mixed: Mixed, host: str) -> None:
    assert mixed.host(host).collected == ()
    assert mixed.host("plain").outcome is HostOutcome.OK


def test_host_cannot_speak_for_another(mixed: Mixed) -> None:
    assert mixed.host("forger").outcome is HostOutcome.FAILED
    assert mixed.host("plain").outcome is HostOutcome.OK
    assert mixed.host("plain").reason == ""
    assert ("plain", "Lie", "failed") not in mixed.progress


def test_text_of_a_variable_is_no_template(mixed: Mixed) -> None:
    assert mixed.host("templated").collected == ({"text": "{{ 6 * 7 }} é \U0001f600 \x7f"},)


def test_progress_tells_each_task_of_each_host(mixed: Mixed) -> None:
    assert [status for host, task, status in mixed.progress if (host, task) == ("plain", "Speak")] == ["started", "ok"]
    assert ("failing", "Speak", "failed") in mixed.progress
    assert ("forgiven", "Speak", "ignored") in mixed.progress
    assert ("plain", "Speak in turn", "skipped") in mixed.progress


def test_nobody_else_may_look_into_a_run(mixed: Mixed) -> None:
    assert mixed.modes
    assert {name: oct(mode) for name, mode in mixed.modes.items() if name.count("/") < 2 and mode & 0o077} == {}


def test_secret_variable_is_in_no_command_line_and_gone_from_the_disk_afterwards(mixed: Mixed) -> None:
    assert SECRET in mixed.written  # where it is looked for, it is found while it has to be there
    assert "ansible-playbook" in mixed.words
    assert SECRET not in mixed.words
    assert SECRET not in everything_in(mixed.directory)


def test_environment_is_not_written_down(mixed: Mixed) -> None:
    assert OF_ENVIRONMENT not in mixed.written
    assert OF_ENVIRONMENT not in everything_in(mixed.directory)


def test_output_is_kept_for_people_and_obeys_no_terminal_sequence(mixed: Mixed) -> None:
    [output] = mixed.directory.glob("*/*")
    assert output.name == "output.txt"
    text = output.read_text()
    assert "PLAY RECAP" in text
    assert "\x1b" not in text
    assert len(text) < 5 << 20


def test_settings_that_the_operator_names_hold(mixed: Mixed) -> None:
    assert "TASK [Speak]" in mixed.log.read_text()


# --- on this machine itself ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory and a home whose settings nobody asked for."""
    caught = tmp_path / "caught"
    for place, name in (("work", "ansible.cfg"), ("home", ".ansible.cfg")):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text(f"[defaults]\nlog_path = {caught}\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    return caught


def test_check_shows_the_difference_and_changes_nothing_and_stray_settings_are_not_used(tmp_path: Path, trap: Path) -> None:
    target = tmp_path / "target"
    target.write_text("before\n")
    variables = {"localhost": {"path": str(target), "content": "after\n"}}
    run = PlaybookRun(PLAYBOOKS / "write.yml", ("localhost",), inventory=None, variables=variables, check=True, timeout_seconds=120)
    result = run_playbook(run, tmp_path / "runs")
    here = result.hosts["localhost"]
    assert (result.ended, here.outcome, here.changed) == ("completed", HostOutcome.OK, True)
    assert "-before" in here.diffs[0]
    assert "+after" in here.diffs[0]
    assert target.read_text() == "before\n"
    assert here.collected == ({"python": sys.executable},)
    assert not trap.exists()


def test_playbook_that_is_none_is_told_in_words_of_ansible(tmp_path: Path) -> None:
    run = PlaybookRun(PLAYBOOKS / "broken.yml", ("localhost",), inventory=None, timeout_seconds=120)
    result = run_playbook(run, tmp_path / "runs")
    assert result.ended == "broken"
    assert "field 'hosts' is required" in result.reason
    assert result.hosts["localhost"].outcome is HostOutcome.MISSING
    assert result.hosts["localhost"].reason == result.reason


def test_name_that_means_other_hosts_ends_the_run(tmp_path: Path) -> None:
    run = PlaybookRun(PLAYBOOKS / "say.yml", ("some",), inventory(tmp_path, "one"), {"some": {"wanted": {}}}, timeout_seconds=120)
    result = run_playbook(run, tmp_path / "runs")
    assert result.ended == "broken"
    assert "not asked for: one" in result.reason
    assert result.hosts.keys() == {"some"}
    assert result.hosts["some"].outcome is HostOutcome.MISSING


# --- over SSH ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[str]:
    """The variables of a host behind an sshd of our own; shared connections as Ansible makes them."""
    program = Path("/usr/sbin/sshd")
    if not program.exists():
        pytest.skip(f"{program} is not installed")
    folder = tmp_path / "sshd"
    folder.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    config = {"ListenAddress": "127.0.0.1", "Port": port, "HostKey": folder / "host", "AuthorizedKeysFile": folder / "user.pub"}
    config |= {"PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PermitRootLogin": "yes", "Subsystem": "sftp internal-sftp"}
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, empty
    process = subprocess.Popen([str(program), "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        arguments = f"-o UserKnownHostsFile={folder / 'known_hosts'} -o GlobalKnownHostsFile=none"
        yield (
            f"ansible_host: 127.0.0.1, ansible_port: {port}, ansible_ssh_private_key_file: {folder / 'user'}, "
            f"ansible_ssh_common_args: '{arguments}', ansible_python_interpreter: {sys.executable}"
        )
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_shared_ssh_connection_is_used_and_does_not_outlive_the_run(tmp_path: Path, sshd: str) -> None:
    path = inventory(tmp_path, more=f"        far: {{{sshd}}}\n        strange: {{{sshd.replace('known_hosts ', 'unknown_hosts ')}}}\n")
    masters: list[str] = []

    def look(*_: object) -> None:
        masters.extend(ssh_masters())

    wanted = {"wanted": {"result": {"exitguard": {"far": True}}}}
    run = PlaybookRun(PLAYBOOKS / "say.yml", ("far", "strange"), path, {"far": wanted, "strange": wanted}, timeout_seconds=120)
    result = run_playbook(run, tmp_path / "runs", progress=look)
    assert result.hosts["far"] == HostResult("far", HostOutcome.OK, collected=({"far": True},))
    assert masters
    assert ssh_masters() == []
    # Keys of hosts are checked unless the operator says otherwise, and nobody is asked.
    assert result.hosts["strange"].outcome is HostOutcome.UNREACHABLE
    assert "Host key verification failed" in result.hosts["strange"].reason


def ssh_masters() -> list[str]:
    """The titles of the processes that hold a shared connection open: `ssh: <socket> [mux]`."""
    return [
        title
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if re.match(r"ssh: /.*/exitguard-[0-9a-f]{12}/.*\[mux\]", title := text_of(path).rstrip("\0"))
    ]
