"""The parts of running a playbook that need no Ansible: its files, what is kept of an event, and what many events come to."""

import os
import secrets
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exitguard.act.ansible import AnsibleError, PlaybookRun, end_leftovers, run_playbook
from exitguard.act.ansible_process.environment import environment_of_ansible, environment_of_process
from exitguard.act.ansible_process.marked import Mark, end_marked
from exitguard.act.ansible_process.messages import Kind, Message, Status
from exitguard.act.ansible_process.reduced import reduced
from exitguard.act.ansible_process.run_files import KEPT_RUNS, as_variables, make_run_files, unfinished_runs, write_arguments
from exitguard.act.ansible_results import Hearing, HostOutcome

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text().filter(lambda key: not key.startswith("__ansible_")), inner, max_size=4)
    ),
    max_leaves=20,
)


PLAYBOOKS = Path(__file__).with_name("playbooks")


def inventory(folder: Path) -> Path:
    path = folder / "inventory.yml"
    path.write_text("all:\n  hosts:\n    a: {}\n")
    return path


# --- what is refused before anything starts -----------------------------------------------------------------------------------------


def refused(run: PlaybookRun, directory: Path) -> str:
    with pytest.raises(AnsibleError) as refusal:
        run_playbook(run, directory)
    return str(refusal.value)


@pytest.mark.parametrize("host", ["all", "web*", "a,b", "a:b", "!a", "~a", "@file", "a[0]", "../up", ".", "", "a b", "a\nb", "-a"])
def test_name_that_ansible_could_take_for_several_hosts_is_refused(host: str, tmp_path: Path) -> None:
    assert "more than one host" in refused(PlaybookRun(PLAYBOOKS / "say.yml", (host,), inventory(tmp_path)), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_run_without_hosts_without_inventory_or_with_variables_of_others_is_refused(tmp_path: Path) -> None:
    playbook, hosts = PLAYBOOKS / "say.yml", inventory(tmp_path)
    assert "one or more hosts" in refused(PlaybookRun(playbook, (), hosts), tmp_path)
    assert "each once" in refused(PlaybookRun(playbook, ("a", "a"), hosts), tmp_path)
    assert "Name the inventory" in refused(PlaybookRun(playbook, ("a",), None), tmp_path)
    assert "variables for b" in refused(PlaybookRun(playbook, ("a",), hosts, {"b": {}}), tmp_path)


def test_missing_playbook_and_inventory_are_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.yml"
    assert f"{nowhere}: not there" in refused(PlaybookRun(nowhere, ("localhost",), None), tmp_path)
    assert f"{nowhere}: not there" in refused(PlaybookRun(PLAYBOOKS / "say.yml", ("a",), nowhere), tmp_path)


def test_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = PlaybookRun(PLAYBOOKS / "say.yml", ("localhost",), None)
    assert f"{tmp_path / 'file'}: " in refused(run, tmp_path / "file")


def test_missing_ansible_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert "pip install 'exitguard[host]'" in refused(PlaybookRun(PLAYBOOKS / "say.yml", ("localhost",), None), tmp_path)


# --- files -----------------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), values))
def test_ansible_reads_a_variable_as_it_was(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, Any]) -> None:
    loader = pytest.importorskip("ansible.parsing.dataloader", reason="ansible-core is not installed").DataLoader()
    path = tmp_path_factory.mktemp("variables") / "vars.json"
    path.write_text(as_variables(variables))
    assert loader.load_from_file(str(path)) == variables


@pytest.mark.parametrize("text", ["off", "1.10", "", "null", "{{ lookup('pipe', 'id') }}", "!unsafe x", "007"])
def test_text_stays_text_and_is_no_template(text: str, tmp_path: Path) -> None:
    loader = pytest.importorskip("ansible.parsing.dataloader", reason="ansible-core is not installed").DataLoader()
    template = pytest.importorskip("ansible.template", reason="ansible-core is not installed").Templar(loader=loader)
    path = tmp_path / "vars.json"
    path.write_text(as_variables({"text": text}))
    assert template.template(loader.load_from_file(str(path))) == {"text": text}


@pytest.mark.parametrize("value", [1.5, b"bytes", object(), {"__ansible_vault": "x"}, {3: "x"}])
def test_variable_that_would_not_arrive_as_it_is_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="for a variable of Ansible"):
        as_variables({"name": value})


def test_files_of_a_run_are_closed_to_others_and_arguments_hold_no_value(tmp_path: Path) -> None:
    old_mask = os.umask(0)
    try:
        files = make_run_files(tmp_path / "runs")
        arguments = write_arguments(
            files,
            hosts=("a", "a.json"),
            inventory=Path("/there"),
            interpreter="python",
            variables={"a": {"password": "sesame"}},
            common={"other": "sesame"},
        )
    finally:
        os.umask(old_mask)
    paths = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "runs").rglob("*") if path.is_dir()} == {0o700}
    assert "sesame" not in " ".join(arguments)
    assert "sesame" in "".join(path.read_text() for path in paths)
    files.forget()
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_the_newest_runs_are_kept_and_whatever_may_still_go_on(tmp_path: Path) -> None:
    (tmp_path / "facts-abc").mkdir()
    going_on = make_run_files(tmp_path)
    done = [make_run_files(tmp_path) for _ in range(KEPT_RUNS + 5)]
    for files in done:
        files.forget()
    newest = make_run_files(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {going_on.directory.name, newest.directory.name, "facts-abc"} | {
        files.directory.name for files in done[-(KEPT_RUNS - 1) :]
    }
    assert {files.mark for files in unfinished_runs(tmp_path)} == {going_on.mark, newest.mark}
    for files in (going_on, newest):
        files.forget()


@pytest.mark.parametrize("content", ["", "only-half", "mark\n/\n", "mark\n/etc\n", "\n\n"])
def test_mark_that_was_not_written_whole_ends_and_removes_nothing(tmp_path: Path, content: str) -> None:
    files = make_run_files(tmp_path)
    files.forget()
    (files.directory / "mark").write_text(content)
    [found] = unfinished_runs(tmp_path)
    assert not Path(found.mark.sockets).exists()
    assert Path(found.mark.sockets).name.startswith("exitguard-")
    assert end_leftovers(tmp_path) == 0
    assert not (files.directory / "mark").exists()


def test_directory_without_runs_has_no_leftovers(tmp_path: Path) -> None:
    assert end_leftovers(tmp_path / "nowhere") == 0


# --- processes -------------------------------------------------------------------------------------------------------------------------


def test_child_without_the_mark_is_ended_with_its_parent_and_a_stranger_is_not() -> None:
    mark = Mark(secrets.token_hex(8), "/nowhere")
    script = "env -i sleep 1000 & echo $!; wait"
    parent = subprocess.Popen(["sh", "-c", script], env={**os.environ, "EXITGUARD_RUN": mark.mark}, stdout=subprocess.PIPE)
    stranger = subprocess.Popen(["sleep", "1000"], env={**os.environ, "EXITGUARD_RUN": mark.mark + "0"})
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        ending = end_marked((mark,), grace_seconds=5)
        assert (ending.ended, ending.left) == (2, ())
        assert not Path(f"/proc/{child}/exe").exists()
        assert stranger.poll() is None
    finally:
        for process in (parent, stranger):
            process.kill()
            process.wait()
        if parent.stdout is not None:
            parent.stdout.close()


# --- environment -----------------------------------------------------------------------------------------------------------------------


def test_environment_drops_what_would_change_the_run_and_keeps_the_rest(tmp_path: Path) -> None:
    files = make_run_files(tmp_path)
    given = {
        "HOME": "/root",
        "SSH_AUTH_SOCK": "/agent",
        "ANSIBLE_SKIP_TAGS": "x",
        "ANSIBLE_STDOUT_CALLBACK": "x",
        "ANSIBLE_PIPELINING": "1",
    }
    made = environment_of_process(given, files)
    assert made["HOME"] == "/root"
    assert made["SSH_AUTH_SOCK"] == "/agent"
    assert made["ANSIBLE_PIPELINING"] == "1"
    assert "ANSIBLE_SKIP_TAGS" not in made
    assert "ANSIBLE_STDOUT_CALLBACK" not in made
    assert made["EXITGUARD_RUN"] == files.mark.mark
    assert environment_of_process({"ANSIBLE_CONFIG": "/mine.cfg"}, files)["ANSIBLE_CONFIG"] == "/mine.cfg"
    files.forget()


def test_host_keys_are_checked_as_the_operator_has_it() -> None:
    prepared = {"ANSIBLE_HOST_KEY_CHECKING": "False", "A": "b"}
    assert environment_of_ansible(prepared, {}) == {"A": "b"}
    assert environment_of_ansible(prepared, {"ANSIBLE_HOST_KEY_CHECKING": "False"}) == prepared


# --- events ----------------------------------------------------------------------------------------------------------------------------


def event(name: str, result: object = None, **data: object) -> dict[str, Any]:
    return {"event": name, "event_data": {"host": "h", "task": "T", "res": result, **data}}


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["event", "event_data", "stdout"]), st.sampled_from(["runner_on_ok", "runner_on_failed"]) | values))
def test_event_of_any_shape_is_reduced_without_an_error(thing: dict[str, Any]) -> None:
    assert all(isinstance(message, Message) for message in reduced(thing))


@settings(deadline=None)
@given(st.sampled_from(["runner_on_ok", "runner_on_failed", "runner_item_on_ok", "runner_on_unreachable"]), values)
def test_message_survives_the_line_it_is_sent_in(name: str, result: object) -> None:
    for message in reduced(event(name, {"exitguard": result, "msg": result})):
        assert Message.from_line(message.to_line()) == message


def test_bomb_is_dropped_without_recursion() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"deeper": deep}
    for bomb, why in ((deep, "levels deep"), ({"n": 10**500}, "digits"), ({"n": float("inf")}, "number"), ([1], "mapping")):
        [dropped, _] = reduced(event("runner_on_ok", {"exitguard": bomb}))
        assert dropped.kind is Kind.DROPPED
        assert why in dropped.text


def test_message_that_says_nothing_is_joined_by_the_last_line_of_standard_error() -> None:
    [failure, _] = reduced(event("runner_on_failed", {"msg": "non-zero return code", "stderr": "first\nno space left\n"}))
    assert failure.text == "non-zero return code: no space left"


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"[" * 100_000, b'{"kind": "nothing"}', b'{"kind": "task", "host": 3}', b'{"kind": "task", "x": 1}']
)
def test_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|JSON|Kind|Expecting"):
        Message.from_line(line)


# --- what they come to -------------------------------------------------------------------------------------------------------------------


def hearing(*messages: Message) -> Hearing:
    heard = Hearing(("h", "other"))
    for message in messages:
        heard.hear(message)
    return heard


FAILED = Message(Kind.FAILURE, "h", "T", Status.FAILED, "why")


def test_account_of_ansible_outweighs_what_was_heard() -> None:
    totals = Message(Kind.TOTALS, hosts={"processed": ["h"], "failures": [], "dark": [], "changed": []})
    result = hearing(FAILED, totals).result("completed", "")
    assert result.hosts["h"].outcome is HostOutcome.OK
    assert result.hosts["other"].outcome is HostOutcome.MISSING


def test_without_an_account_a_failure_stands_and_silence_is_no_success() -> None:
    ok = Message(Kind.TASK, "other", "T", Status.CHANGED)
    timed_out = hearing(FAILED, ok).result("timed_out", "too late")
    assert (timed_out.hosts["h"].outcome, timed_out.hosts["h"].reason) == (HostOutcome.FAILED, "T: why")
    assert (timed_out.hosts["other"].outcome, timed_out.hosts["other"].reason) == (HostOutcome.TIMED_OUT, "too late")
    assert timed_out.hosts["other"].changed
    assert hearing(ok).result("broken", "gone").hosts["other"].outcome is HostOutcome.MISSING


def test_what_a_host_says_is_bounded() -> None:
    messages = [Message(Kind.COLLECTED, "h", "T", value={"n": number}) for number in range(2000)]
    messages += [Message(Kind.DIFF, "h", "T", text="\x1b[31m-a\n") for _ in range(200)]
    messages += [Message(Kind.FAILURE, "h", "T", Status.FAILED, "x" * 50_000)]
    result = hearing(*messages).result("broken", "").hosts["h"]
    assert len(result.collected) == 1000
    assert len(result.diffs) == 50
    assert result.diffs[0] == "\ufffd[31m-a\n"
    assert len(result.reason) == 2000


def test_unreachable_leftover_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnsibleError, match="Expected a place for the files"):
        end_leftovers(tmp_path / "file")
