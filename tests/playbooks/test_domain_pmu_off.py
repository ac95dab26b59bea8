"""playbooks/domain_pmu_off.yml and its module against libvirt's own test driver, which keeps its domains in the process that opens it."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exitguard.remedy.domain_xml import fingerprint, pmu_element, with_pmu

pytestmark = pytest.mark.integration
libvirt = pytest.importorskip("libvirt", reason="libvirt-python cannot be loaded")

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOK = REPOSITORY / "playbooks" / "domain_pmu_off.yml"
PROGRAMS = Path(sys.executable).parent
PASSWORD = "correct-horse-battery"  # noqa: S105 - of a domain that is none

GUESTS = {
    "silent": "",
    "with-features": "<features><acpi/><vmport state='off'/></features>",
    "off": "<features><pmu state='off'/></features>",
    "asked-for": "<features><pmu state='on'/></features>",
    "of-nova": "<metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>",
    "of-another": "<metadata><vm xmlns='https://example.org/our-own-cloud'/></metadata>",
    "locked": "<metadata><e:locked xmlns:e='urn:exitguard:domain:1'/></metadata>",
    "not-asked-for": "",
}
UUIDS = {name: f"00000000-0000-4000-8000-{number:012}" for number, name in enumerate([*GUESTS, "gone"])}
EVERY_OUTCOME = {
    "silent": "done",
    "with-features": "done",
    "off": "already",
    "asked-for": "changed_since",
    "of-nova": "refused",
    "of-another": "refused",
    "locked": "refused",
    "gone": "changed_since",
}


def change(name: str, before: str = "absent", after: str = "off", restores: str | None = None) -> dict[str, Any]:
    return {"uuid": UUIDS[name], "before": before, "after": after, "restores": restores}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    def document(name: str, inside: str) -> str:
        return (
            f"<domain type='test'><name>{name}</name><uuid>{UUIDS[name]}</uuid><memory>1024</memory><os><type>hvm</type></os>{inside}"
            f"<devices><graphics type='vnc' passwd='{PASSWORD}'/></devices></domain>"
        )

    path = tmp_path / "node.xml"
    path.write_text(f"<node>{''.join(document(name, inside) for name, inside in GUESTS.items())}</node>")
    return f"test://{path}"


# Played


def play(folder: Path, uri: str, *options: str, python: str = sys.executable, **variables: object) -> subprocess.CompletedProcess[str]:
    settings = {
        "exitguard_become": False,
        "domain_pmu_off_uri": uri,
        "domain_pmu_off_python": python,
        "domain_pmu_off_lock_file": str(folder / "lock" / "remedy.lock"),
        **variables,
    }
    command = [str(PROGRAMS / "ansible-playbook"), "-i", "hv1,", "-c", "local", "-e", json.dumps(settings), *options, str(PLAYBOOK)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV"))}
    ansible = {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    environment = {**kept, **ansible, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def steps_of(output: str) -> dict[str, dict[str, Any]]:
    """The steps by the names of their guests, from the one result that has them, as -v prints it."""
    line = next(line for line in output.splitlines() if '"exitguard": {"steps"' in line)
    steps = json.loads(line[line.index("=> ") + 3 :])["exitguard"]["steps"]
    names = {uuid: name for name, uuid in UUIDS.items()}
    return {names[step["subject"]]: step for step in steps}


def outcomes_of(output: str) -> dict[str, str]:
    return {name: step["outcome"] for name, step in steps_of(output).items()}


@pytest.mark.parametrize("mode", [(), ("--check",)], ids=["done", "check"])
def test_every_domain_is_told_and_shown_and_none_of_these_fails_the_host(tmp_path: Path, uri: str, mode: tuple[str, ...]) -> None:
    expected = {name: outcome for name, outcome in EVERY_OUTCOME.items() if outcome != "refused"}
    result = play(tmp_path, uri, "-v", "--diff", *mode, domain_pmu_off_changes=[change(name) for name in expected])
    assert result.returncode == 0, result.stdout
    steps = steps_of(result.stdout)
    assert {name: step["outcome"] for name, step in steps.items()} == expected
    assert steps["asked-for"]["reason"] == "the element says on; the change was planned on absent"
    assert steps["gone"]["reason"] == "there is no such domain any more"
    assert all(
        (step["undo"] is not None) == ((step["outcome"] == "done" and not mode) or step["outcome"] == "already") for step in steps.values()
    )
    assert f"--- domain {UUIDS['with-features']} before" in result.stdout
    assert "     <acpi/>\n+    <pmu state='off'/>\n     <vmport state='off'/>\n" in result.stdout
    assert result.stdout.count("+    <pmu state='off'/>") == 2
    assert (tmp_path / "lock" / "remedy.lock").exists() == (not mode)


def test_refused_domain_fails_the_host_and_no_password_is_printed_however_much_is_asked_for(tmp_path: Path, uri: str) -> None:
    result = play(tmp_path, uri, "-vvvvv", "--diff", domain_pmu_off_changes=[change(name) for name in EVERY_OUTCOME])
    assert result.returncode == 2, result.stdout
    assert f"3 of 8 domains: {UUIDS['of-nova']}: OpenStack Nova owns the definition, by its metadata. Nothing was" in result.stdout
    for outcome in set(EVERY_OUTCOME.values()):
        assert result.stdout.count(f'"outcome": "{outcome}"') == list(EVERY_OUTCOME.values()).count(outcome)
    assert PASSWORD not in result.stdout + result.stderr
    assert "graphics" not in result.stdout


def test_yaml_off_without_quotes_is_off(tmp_path: Path, uri: str) -> None:
    variables = tmp_path / "changes.yml"
    variables.write_text(f"domain_pmu_off_changes:\n  - {{uuid: {UUIDS['silent']}, before: absent, after: off}}\n")
    result = play(tmp_path, uri, "-v", "-e", f"@{variables}")
    assert result.returncode == 0, result.stdout
    assert outcomes_of(result.stdout) == {"silent": "done"}


def test_python_without_libvirt_is_named(tmp_path: Path, uri: str) -> None:
    python = str(Path(sys.base_prefix) / "bin" / "python3")
    if subprocess.run([python, "-c", "import libvirt"], capture_output=True, check=False).returncode == 0:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
        python = str(tmp_path / "bare" / "bin" / "python")
    result = play(tmp_path, uri, "-v", python=python, domain_pmu_off_changes=[change("silent")])
    assert result.returncode == 2, result.stdout
    assert "install python3-libvirt for it, or name a Python that has it by ansible_python_interpreter" in result.stdout
    assert outcomes_of(result.stdout) == {"silent": "refused"}


def test_changes_that_make_no_sense_are_refused_before_anything_is_done(tmp_path: Path, uri: str) -> None:
    result = play(tmp_path, uri, domain_pmu_off_changes=[{"uuid": UUIDS["silent"], "before": "maybe"}])
    assert result.returncode == 2, result.stdout
    assert "value of before must be one of: on, off, absent" in result.stdout
    assert not (tmp_path / "lock").exists()


# The module itself


@pytest.fixture(scope="module")
def pmu_module() -> ModuleType:
    """The module, imported as Ansible would bundle it: with playbooks/module_utils beside Ansible's own."""
    import ansible.module_utils  # noqa: PLC0415 - its path is changed

    ansible.module_utils.__path__.append(str(REPOSITORY / "playbooks" / "module_utils"))
    spec = importlib.util.spec_from_file_location("exitguard_domain_pmu", REPOSITORY / "playbooks/library/exitguard_domain_pmu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        ansible.module_utils.__path__.pop()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return module


def carry_out(module: ModuleType, uri: str, *changes: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """The steps, and the connection that they were made on."""
    work = module.Work(uri, list(changes), check=False)
    steps, _ = module.carry_out(work, 30)
    return steps, work.connection


def definition(connection: Any, name: str) -> str:
    text: str = connection.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    return text


def test_uuid_that_is_none_or_named_twice_is_refused_by_name(pmu_module: ModuleType) -> None:
    assert pmu_module.why_senseless([{"uuid": "web-1"}]).startswith("changes: 'web-1' is not a uuid; expected one like 813b0c1a-")
    twice = [{"uuid": UUIDS["silent"]}, {"uuid": UUIDS["silent"].replace("-", "").upper()}]
    assert pmu_module.why_senseless(twice) == f"changes: {UUIDS['silent']} is named 2 times; expected each domain once"


def test_nothing_but_the_element_of_the_domains_asked_for_changes(pmu_module: ModuleType, uri: str) -> None:
    untouched = libvirt.open(uri)
    _, connection = carry_out(pmu_module, uri, *(change(name) for name in EVERY_OUTCOME))
    for name in GUESTS:
        before = definition(untouched, name)
        assert definition(connection, name) == (with_pmu(before, "off") if EVERY_OUTCOME.get(name) == "done" else before)
    assert PASSWORD in definition(connection, "silent")


def test_undo_restores_the_very_text(pmu_module: ModuleType, uri: str) -> None:
    before = definition(libvirt.open(uri), "with-features")
    (done,), connection = carry_out(pmu_module, uri, change("with-features"))
    undo = done["undo"]
    assert undo == {
        "element": "absent",
        "definition_before": fingerprint(before),
        "definition_after": fingerprint(definition(connection, "with-features")),
    }
    work = pmu_module.Work(uri, [], check=False)
    work.connection = connection
    back = change("with-features", before="off", after=undo["element"], restores=undo["definition_before"])
    step, diff = work._carry_out(back)
    assert step["outcome"] == "done"
    assert "-    <pmu state='off'/>" in diff
    assert definition(connection, "with-features") == before
    assert work._carry_out(back)[0]["outcome"] == "already"


def test_undo_leaves_a_definition_that_was_changed_elsewhere_since(pmu_module: ModuleType, uri: str) -> None:
    steps, connection = carry_out(pmu_module, uri, change("off", before="off", after="absent", restores="sha256:of-another"))
    assert [step["outcome"] for step in steps] == ["changed_since"]
    assert pmu_element(definition(connection, "off")) == "off"
    (step,), _ = carry_out(pmu_module, uri, change("off", before="absent", after="off", restores="sha256:of-another"))
    assert step["outcome"] == "changed_since"


def test_pmu_that_was_asked_for_is_taken_away_by_an_undo_only(pmu_module: ModuleType, uri: str) -> None:
    (step,), connection = carry_out(pmu_module, uri, change("asked-for", before="on"))
    assert step["outcome"] == "refused"
    assert "asks for the PMU by its own element" in step["reason"]
    restores = fingerprint(with_pmu(definition(connection, "asked-for"), "absent"))
    (step,), _ = carry_out(pmu_module, uri, change("asked-for", before="on", after="absent", restores=restores))
    assert step["outcome"] == "done"


class Interfering:
    """A connection on which somebody else changes the title right after each of the first defines."""

    def __init__(self, connection: Any, times: int) -> None:
        self.connection = connection
        self.times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def defineXML(self, xml: str) -> None:  # noqa: N802 - libvirt's name
        domain = self.connection.defineXML(xml)
        if self.times:
            self.times -= 1
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "changed", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)


@pytest.mark.parametrize(
    ("times", "restored"), [(1, "was put back, exactly"), (2, "was put back, but NOT exactly: libvirt reads it as another in domain/title")]
)
def test_definition_that_differs_in_more_is_put_back_and_says_how_exactly(
    pmu_module: ModuleType, uri: str, times: int, restored: str
) -> None:
    work = pmu_module.Work(uri, [], check=False)
    connection = libvirt.open(uri)
    before = definition(connection, "silent")
    work.connection = Interfering(connection, times)
    step, diff = work._carry_out(change("silent"))
    assert (step["outcome"], step["undo"], diff) == ("failed", None, "")
    assert "defined, but more than <pmu> differs, in domain/title" in step["reason"]
    assert restored in step["reason"]
    assert pmu_element(definition(connection, "silent")) == "absent"
    assert (definition(connection, "silent") == before) == (times == 1)


def test_definition_that_changes_just_before_the_define_is_left_alone(pmu_module: ModuleType, uri: str) -> None:
    work = pmu_module.Work(uri, [], check=False)
    work.connection = libvirt.open(uri)
    domain = work.connection.lookupByName("silent")
    old = definition(work.connection, "silent")
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "changed", None, None, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    with pytest.raises(pmu_module.Ended, match="changed elsewhere just now") as ended:
        work._define(domain, change("silent"), old, with_pmu(old, "off"))
    assert ended.value.outcome == "changed_since"
    assert pmu_element(definition(work.connection, "silent")) == "absent"


def test_work_that_was_given_up_defines_nothing(pmu_module: ModuleType, uri: str) -> None:
    work = pmu_module.Work(uri, [], check=False)
    work.connection = libvirt.open(uri)
    assert work.give_up() is None
    assert work._carry_out(change("silent"))[0]["outcome"] == "refused"
    assert pmu_element(definition(work.connection, "silent")) == "absent"


class Stuck:
    """A connection on which one call does not return until it is let go."""

    def __init__(self, connection: Any, call: str, at: int) -> None:
        self.connection = connection
        self.call = call
        self.at = at
        self.let_go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        if name == self.call:
            self.at -= 1
            if self.at < 0:
                self.let_go.wait(60)
        return getattr(self.connection, name)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("lookupByUUIDString", "not tried: libvirt has not answered within 1 seconds. Nothing was changed"),
        ("defineXML", "libvirt has not answered within 1 seconds while the definition was changed. It may still take effect"),
    ],
)
def test_call_that_blocks_costs_its_domain_and_those_after_it(
    pmu_module: ModuleType, uri: str, monkeypatch: pytest.MonkeyPatch, call: str, reason: str
) -> None:
    outcome = "failed" if call == "defineXML" else "refused"
    connection = Stuck(libvirt.open(uri), call, 1)
    monkeypatch.setattr(pmu_module.libvirt, "open", lambda _uri: connection)
    names = ("silent", "with-features", "not-asked-for")
    work = pmu_module.Work(uri, [change(name) for name in names], check=False)
    steps, diffs = pmu_module.carry_out(work, 1)
    connection.let_go.set()
    assert [step["outcome"] for step in steps] == ["done", outcome, "refused"]
    assert steps[1]["reason"].startswith(reason)
    assert len(diffs) == 1
    # What it was told is what it is: nothing is begun once it was given up.
    for thread in threading.enumerate():
        if thread.name == "libvirt":
            thread.join(30)
    assert [pmu_element(definition(connection, name)) for name in names] == ["off", "off" if outcome == "failed" else "absent", "absent"]


def test_process_that_was_asked_to_end_begins_no_further_change(pmu_module: ModuleType, uri: str) -> None:
    work = pmu_module.Work(uri, [change("silent"), change("with-features")], check=False)
    work.ending.set()
    steps, _ = pmu_module.carry_out(work, 30)
    assert {step["outcome"] for step in steps} == {"refused"}
    assert all("asked to end" in step["reason"] for step in steps)


def test_libvirt_that_is_not_there_is_named_and_nothing_is_changed(pmu_module: ModuleType, tmp_path: Path) -> None:
    work = pmu_module.Work(f"qemu+unix:///system?socket={tmp_path}/nowhere", [change("silent"), change("off")], check=False)
    steps, diffs = pmu_module.carry_out(work, 30)
    assert ({step["outcome"] for step in steps}, diffs) == ({"refused"}, [])
    assert "/nowhere" in steps[0]["reason"]
    assert steps[0]["reason"].endswith("Nothing was changed")


def test_second_attempt_waits_for_the_first_but_not_for_ever(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "lock" / "remedy.lock"
    path.parent.mkdir()
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = play(tmp_path, uri, "-v", domain_pmu_off_timeout_seconds=1, domain_pmu_off_changes=[change("silent"), change("off")])
    assert result.returncode == 2, result.stdout
    assert outcomes_of(result.stdout) == {"silent": "refused", "off": "refused"}
    assert f"another attempt has held {path} for 1 seconds" in result.stdout


def test_lock_is_no_link_to_somewhere_else(tmp_path: Path, uri: str) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "remedy.lock").symlink_to(tmp_path / "elsewhere")
    result = play(tmp_path, uri, "-v", domain_pmu_off_changes=[change("silent")])
    assert outcomes_of(result.stdout) == {"silent": "refused"}
    assert "cannot be opened" in result.stdout
    assert not (tmp_path / "elsewhere").exists()
