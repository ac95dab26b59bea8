"""playbooks/domain_pmu_off.yml on a real libvirtd: thirty guests in every state and of every owner; processes that end in the middle."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from domain_documents import LOCKED_METADATA, NOVA_METADATA, UNKNOWN_METADATA, guest_xml, uuid_of
from libvirt_lab import LibvirtLab

from exitguard.remedy.domain_xml import fingerprint, pmu_element, with_pmu, without_secrets

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOKS = REPOSITORY / "playbooks"
PROGRAMS = Path(sys.executable).parent
LIMIT_SECONDS = 120
INACTIVE, SECURE = 2, 1  # VIR_DOMAIN_XML_INACTIVE and _SECURE: libvirt-python is an optional package

#: QEMU takes eight characters; libvirt has to escape three of these.
VNC = "<graphics type='vnc' port='-1' autoport='yes' passwd='s&lt;3&apos;c&quot;t'><listen type='none'/></graphics>"
COOKIES = """<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='https' name='a/b'>
<host name='images.example.org' port='443'/><cookies><cookie name='session'>c00kie</cookie></cookies></source>
<target dev='vda' bus='virtio'/></disk>"""
MANY_FEATURES = "<acpi/><apic/><hyperv><relaxed state='on'/></hyperv><kvm><hidden state='on'/></kvm><vmport state='off'/><smm state='on'/>"
OVERRIDE = "<qemu:commandline><qemu:arg value='-cpu'/><qemu:arg value='max,pmu=on'/></qemu:commandline>"
LIBOSINFO = "<l:libosinfo xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'><l:os id='http://debian.org/debian/12'/></l:libosinfo>"
OVIRT = "<ovirt-vm:vm xmlns:ovirt-vm='http://ovirt.org/vm/1.0'/>"
CPU_LOOKALIKE = "<features><pmu state='on'/></features>"


def guest(name: str, *, features: str = "", devices: str = "", **more: Any) -> str:
    xml = guest_xml(name, mode="maximum", **more)
    return xml.replace("<features>", f"<features>{features}").replace("</devices>", f"{devices}</devices>")


#: Of each outcome the guests that are asked for, by what their definition says.
GUESTS = {
    "done": {
        "running": guest("running"),
        "running-with-features": guest("running-with-features", features=MANY_FEATURES),
        "running-with-password": guest("running-with-password", devices=VNC),
        "paused": guest("paused"),
        "paused-with-note": guest("paused-with-note", metadata=LIBOSINFO),
        "saved": guest("saved"),
        "saved-with-features": guest("saved-with-features", features="<acpi/>"),
        "off": guest("off"),
        "off-with-features": guest("off-with-features", features=MANY_FEATURES),
        "off-with-late-features": guest("off-with-late-features", features="<vmport state='off'/>"),
        "off-with-password": guest("off-with-password", devices=VNC + COOKIES, features="<acpi/>"),
        "off-overridden": guest("off-overridden", extra=OVERRIDE),
        "off-with-lookalike": guest("off-with-lookalike", metadata=f"<l:n xmlns:l='http://libosinfo.org/x'>{CPU_LOOKALIKE}</l:n>"),
        "<pmu state='on'>&amp;": guest("<pmu state='on'>&amp;"),
        "{{ lookup('pipe', 'touch owned') }}": guest("{{ lookup('pipe', 'touch owned') }}"),
    },
    "already": {"already": guest("already", pmu="off"), "already-running": guest("already-running", pmu="off", features="<acpi/>")},
    "changed_since": {
        "asked-for": guest("asked-for", pmu="on"),
        "asked-for-running": guest("asked-for-running", pmu="on"),
        "transient": guest("transient"),
        "gone": "",
    },
    "refused": {
        "of-nova": guest("of-nova", metadata=NOVA_METADATA),
        "of-nova-running": guest("of-nova-running", metadata=NOVA_METADATA),
        "of-nova-with-password": guest("of-nova-with-password", metadata=NOVA_METADATA, devices=VNC),
        "of-ovirt": guest("of-ovirt", metadata=OVIRT),
        "of-another": guest("of-another", metadata=UNKNOWN_METADATA),
        "locked": guest("locked", metadata=LOCKED_METADATA),
        "locked-running": guest("locked-running", metadata=LIBOSINFO + LOCKED_METADATA),
    },
}
BYSTANDERS = {name: guest(name) for name in ("bystander", "bystander-running", "bystander-with-features")}
OUTCOMES = {name: outcome for outcome, guests in GUESTS.items() for name in guests}
NAMES = {uuid_of(name): name for name in OUTCOMES}


def change(name: str, before: str = "absent", after: str = "off", restores: str | None = None) -> dict[str, Any]:
    return {"uuid": uuid_of(name), "before": before, "after": after, "restores": restores}


def definitions(lab: LibvirtLab) -> dict[str, str]:
    """The definition of every persistent guest with its secrets, by name."""
    with lab.connection() as connection:
        return {domain.name(): domain.XMLDesc(INACTIVE | SECURE) for domain in connection.listAllDomains(0) if domain.isPersistent()}


def runs(lab: LibvirtLab) -> dict[str, tuple[int, int, str]]:
    """What runs: process, state and XML, by name."""
    with lab.connection() as connection:
        running = [domain for domain in connection.listAllDomains(0) if domain.isActive()]
        return {domain.name(): (lab.pid(domain.UUIDString()), domain.state()[0], domain.XMLDesc(SECURE)) for domain in running}


# --- the playbook ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Play:
    """What one play said, and what there was after it."""

    exit_code: int
    output: str
    definitions: dict[str, str]
    runs: dict[str, tuple[int, int, str]]

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        line = next(line for line in self.output.splitlines() if '"exitguard": {"steps"' in line)
        steps = json.loads(line[line.index("=> ") + 3 :])["exitguard"]["steps"]
        return {NAMES[step["subject"]]: step for step in steps}

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: step["outcome"] for name, step in self.steps.items()}


@dataclass(frozen=True)
class Story:
    definitions: dict[str, str]
    runs: dict[str, tuple[int, int, str]]
    checked: Play
    done: Play
    repeated: Play
    undone: Play


@pytest.fixture(scope="module")
def story(lab: LibvirtLab, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The remedy in check mode, for good, once more, and undone."""
    folder = tmp_path_factory.mktemp("play")

    def play(changes: list[dict[str, Any]], *options: str) -> Play:
        variables = {
            "ansible_python_interpreter": sys.executable,
            "exitguard_become": False,
            "domain_pmu_off_uri": lab.uri,
            "domain_pmu_off_lock_file": str(folder / "remedy.lock"),
            "domain_pmu_off_changes": changes,
        }
        path = folder / "variables.json"
        path.write_text(json.dumps(variables))
        command = [str(PROGRAMS / "ansible-playbook"), "-i", "hv1,", "-c", "local", "-v", *options, "-e", f"@{path}"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "COV"))}
        environment = {**kept, "ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"}
        result = subprocess.run(
            [*command, str(PLAYBOOKS / "domain_pmu_off.yml")],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        return Play(result.returncode, result.stdout + result.stderr, definitions(lab), runs(lab))

    everything = {name: xml for guests in (*GUESTS.values(), BYSTANDERS) for name, xml in guests.items()}
    lab.define(*(xml for name, xml in everything.items() if name not in ("transient", "gone")))
    lab.start(*(name for name in everything if name.startswith(("paused", "saved")) or "running" in name))
    lab.start_transient(everything["transient"])
    with lab.connection() as connection:
        for name in ("running", "running-with-features", "of-nova-running"):
            connection.lookupByName(name).resume()
    lab.save("saved")
    lab.save("saved-with-features")
    before, running = definitions(lab), runs(lab)

    changes = [change(name) for name in OUTCOMES]
    checked = play(changes, "--check", "--diff")
    done = play(changes, "--diff")
    repeated = play(changes)
    undos = {name: step["undo"] for name, step in done.steps.items() if step["outcome"] == "done"}
    undone = play([change(name, "off", undo["element"], undo["definition_before"]) for name, undo in undos.items()])
    assert not (folder / "owned").exists()
    return Story(before, running, checked, done, repeated, undone)


def test_exactly_what_is_asked_for_and_allowed_is_changed(story: Story) -> None:
    assert len(story.definitions) + 1 >= 30
    assert story.done.outcomes == OUTCOMES
    changed = {name for name in story.definitions if story.done.definitions[name] != story.definitions[name]}
    assert changed == set(GUESTS["done"])


def test_changed_definition_is_the_old_one_but_for_the_element_to_the_letter(story: Story) -> None:
    for name in GUESTS["done"]:
        assert pmu_element(story.done.definitions[name]) == "off"
        assert story.done.definitions[name] == with_pmu(story.definitions[name], "off"), name


def test_passwords_and_cookies_survive_and_are_never_told(story: Story) -> None:
    for name in ("running-with-password", "off-with-password"):
        assert "passwd='s&lt;3&apos;c&quot;t'" in story.done.definitions[name]
    assert "c00kie" in story.done.definitions["off-with-password"]
    for play in (story.checked, story.done, story.repeated, story.undone):
        assert not any(secret in play.output for secret in ("s<3", "s&lt;3", "s\\u003c3", "c&quot;t", "c00kie", "passwd"))


def test_what_runs_goes_on_undisturbed(story: Story) -> None:
    assert {"running", "paused", "transient", "of-nova-running"} <= set(story.runs)
    for play in (story.checked, story.done, story.repeated, story.undone):
        assert play.runs == story.runs


def test_refused_domains_fail_the_host_and_are_told_with_their_owners(story: Story) -> None:
    assert story.done.exit_code == 2
    steps = story.done.steps
    assert steps["of-nova"]["reason"].startswith("OpenStack Nova owns the definition")
    assert steps["of-ovirt"]["reason"].startswith("oVirt owns the definition")
    assert steps["of-another"]["reason"].startswith("an unknown manager owns the definition")
    assert steps["locked-running"]["reason"].startswith("locked by an operator's mark")
    assert steps["transient"]["reason"] == "the domain is transient: it has no definition for a next start"


def test_check_mode_tells_what_would_become_of_each_and_changes_nothing(story: Story) -> None:
    assert story.checked.outcomes == OUTCOMES
    assert story.checked.definitions == story.definitions
    # What is as it is to be already says how it was before: a run that was cut off after its change needs that.
    assert all((step["undo"] is not None) == (step["outcome"] == "already") for step in story.checked.steps.values())


def test_second_run_changes_nothing(story: Story) -> None:
    assert story.repeated.outcomes == {name: "already" if outcome == "done" else outcome for name, outcome in OUTCOMES.items()}
    assert story.repeated.definitions == story.done.definitions
    assert '"changed": false' in story.repeated.output
    assert '"changed": true' not in story.repeated.output


def test_undo_restores_definitions_that_differ_in_nothing(story: Story) -> None:
    assert story.undone.exit_code == 0, story.undone.output
    assert story.undone.outcomes == dict.fromkeys(GUESTS["done"], "done")
    assert story.undone.definitions == story.definitions


def test_fingerprints_of_the_undo_are_those_of_the_definitions_without_secrets(story: Story) -> None:
    for name in GUESTS["done"]:
        undo = story.done.steps[name]["undo"]
        assert undo["element"] == "absent"
        assert undo["definition_before"] == fingerprint(story.definitions[name])
        assert undo["definition_after"] == fingerprint(without_secrets(story.done.definitions[name]))


def test_secrets_that_are_known_here_are_those_that_libvirt_withholds(story: Story, lab: LibvirtLab) -> None:
    with lab.connection() as connection:
        for name, xml in story.definitions.items():
            assert without_secrets(xml) == connection.lookupByName(name).XMLDesc(INACTIVE)


# --- the module, ended in the middle --------------------------------------------------------------------------------------------

#: As Ansible bundles it: the module, with playbooks/module_utils beside Ansible's own.
_RUN = """import runpy, sys, ansible.module_utils
ansible.module_utils.__path__.append(sys.argv.pop(1))
runpy.run_path(sys.argv.pop(1), run_name="__main__")"""


@dataclass(frozen=True)
class Crowd:
    """Many guests that are all to be changed, and how to run the module over them."""

    lab: LibvirtLab
    folder: Path
    names: tuple[str, ...]
    old: dict[str, str]

    def begin(self, *, timeout_seconds: int = 60, names: tuple[str, ...] | None = None) -> "subprocess.Popen[str]":
        options = {
            "changes": [change(name) for name in names or self.names],
            "uri": self.lab.uri,
            "timeout_seconds": timeout_seconds,
            "lock_file": str(self.folder / "remedy.lock"),
        }
        path = self.folder / "options.json"
        path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": options}))
        module = PLAYBOOKS / "library" / "exitguard_domain_pmu.py"
        command = [sys.executable, "-c", _RUN, str(PLAYBOOKS / "module_utils"), str(module), str(path)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self, process: "subprocess.Popen[str]") -> dict[str, dict[str, Any]]:
        """The steps that the module told, by the names of the guests."""
        output, errors = process.communicate(timeout=LIMIT_SECONDS)
        assert "Traceback" not in errors, errors
        names = {uuid_of(name): name for name in self.names}
        return {names[step["subject"]]: step for step in json.loads(output)["exitguard"]["steps"]}

    def wait_for(self, name: str) -> None:
        """Return when this guest is changed."""
        deadline = time.monotonic() + LIMIT_SECONDS
        with self.lab.connection() as connection:
            domain = connection.lookupByName(name)
            while "<pmu" not in domain.XMLDesc(INACTIVE):
                assert time.monotonic() < deadline, f"{name} was not changed"

    def changed(self) -> set[str]:
        """The guests that are changed; every other is as it was, to the letter."""
        now = definitions(self.lab)
        for name in self.names:
            assert now[name] in (self.old[name], with_pmu(self.old[name], "off")), f"{name} is neither the old nor the new definition"
        return {name for name in self.names if now[name] != self.old[name]}

    def reset(self) -> None:
        self.lab.define(*self.old.values())


@pytest.fixture(scope="module")
def everyone(lab: LibvirtLab, story: Story, tmp_path_factory: pytest.TempPathFactory) -> Crowd:
    assert story  # its guests are gone only when this module's are
    names = tuple(f"one-of-many-{number:03}" for number in range(60))
    lab.define(*(guest(name, devices=VNC, features=MANY_FEATURES) for name in names))
    old = {name: xml for name, xml in definitions(lab).items() if name in names}
    return Crowd(lab, tmp_path_factory.mktemp("crowd"), names, old)


@pytest.fixture
def crowd(everyone: Crowd) -> Iterator[Crowd]:
    yield everyone
    everyone.reset()


def test_module_killed_at_any_point_leaves_old_or_new_definitions(crowd: Crowd) -> None:
    rng = random.Random(20261123)  # noqa: S311 - to be the same in every run
    changed: set[str] = set()
    for _ in range(10):
        if len(changed) > len(crowd.names) - 20:
            crowd.reset()
            changed = set()
        process = crowd.begin()
        crowd.wait_for(crowd.names[len(changed) + rng.randrange(10)])
        time.sleep(rng.uniform(0, 0.005))
        process.kill()
        process.communicate(timeout=LIMIT_SECONDS)
        before, changed = changed, crowd.changed()
        # The next attempt went on where this one was killed: in the order asked for, and no other guest.
        assert before < changed == set(crowd.names[: len(changed)])
    # The lock of those that were killed holds nobody up, and what they did is found done.
    steps = crowd.end(crowd.begin())
    assert {name for name, step in steps.items() if step["outcome"] == "already"} == changed
    assert crowd.changed() == set(crowd.names)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_module_that_is_asked_to_end_finishes_a_domain_and_tells_what_it_did(crowd: Crowd, number: signal.Signals) -> None:
    process = crowd.begin()
    crowd.wait_for(crowd.names[3])
    process.send_signal(number)
    steps = crowd.end(process)
    assert {name for name, step in steps.items() if step["outcome"] == "done"} == crowd.changed()
    assert {step["outcome"] for step in steps.values()} <= {"done", "refused"}


def test_libvirt_that_stops_answering_in_the_middle_is_not_waited_for(crowd: Crowd) -> None:
    process = crowd.begin(timeout_seconds=1)
    crowd.wait_for(crowd.names[3])
    with crowd.lab.stopped_daemon():
        steps = crowd.end(process)
    outcomes = [step["outcome"] for step in steps.values()]
    done, open_ends = outcomes.count("done"), outcomes.count("failed")
    assert outcomes == ["done"] * done + ["failed"] * open_ends + ["refused"] * (len(outcomes) - done - open_ends)
    assert open_ends <= 1
    told = {name for name, step in steps.items() if step["outcome"] == "done"}
    assert told <= crowd.changed() <= told | {name for name, step in steps.items() if step["outcome"] == "failed"}


def test_libvirt_that_does_not_answer_at_all_is_not_waited_for(crowd: Crowd) -> None:
    with crowd.lab.stopped_daemon():
        steps = crowd.end(crowd.begin(timeout_seconds=1))
    assert {step["outcome"] for step in steps.values()} == {"refused"}
    assert "libvirt has not answered within 1 seconds. Nothing was changed" in steps[crowd.names[0]]["reason"]
    assert crowd.changed() == set()


def test_libvirtd_that_dies_in_the_middle_leaves_old_or_new_definitions(crowd: Crowd) -> None:
    process = crowd.begin()
    crowd.wait_for(crowd.names[3])
    crowd.lab.kill_daemon()
    steps = crowd.end(process)
    crowd.lab.ensure_daemon()
    told = {name for name, step in steps.items() if step["outcome"] == "done"}
    assert told <= crowd.changed() <= told | {name for name, step in steps.items() if step["outcome"] == "failed"}


def test_two_attempts_at_once_are_one_after_the_other(crowd: Crowd) -> None:
    first, second = (crowd.begin() for _ in range(2))
    told = [crowd.end(process) for process in (first, second)]
    for name in crowd.names:
        assert sorted(steps[name]["outcome"] for steps in told) == ["already", "done"]


# --- what libvirt makes of it ---------------------------------------------------------------------------------------------------


def rewritten(lab: LibvirtLab, name: str, rewrite: Callable[[str], str]) -> None:
    """Change a definition's file behind libvirtd's back, as an older libvirt may have written it."""
    path = lab.root / "etc/libvirt/qemu" / f"{name}.xml"
    lab.kill_daemon()
    path.write_text(rewrite(path.read_text()))
    lab.ensure_daemon()


def test_definition_that_libvirt_refuses_to_define_again_stays_as_it_was(crowd: Crowd) -> None:
    name = "emulator-is-gone"
    emulator = crowd.lab.copy_qemu("gone")
    crowd.lab.define(guest(name, emulator=emulator))
    emulator.unlink()
    before = definitions(crowd.lab)[name]
    extended = Crowd(crowd.lab, crowd.folder, (*crowd.names, name), crowd.old)
    step = extended.end(extended.begin(names=(name,)))[name]
    assert step["outcome"] == "failed"
    assert step["reason"].startswith("libvirt refused the new definition: ")
    assert step["reason"].endswith("The definition is as it was")
    assert definitions(crowd.lab)[name] == before


def test_definition_of_which_libvirt_makes_more_is_put_back_and_the_rest_is_named(crowd: Crowd) -> None:
    name = "memory-of-another-time"
    numa = "<cpu mode='maximum' check='none'><numa><cell id='0' cpus='0' memory='16384'/></numa></cpu>"
    crowd.lab.define(guest(name).replace("<cpu mode='maximum' check='none'/>", numa))
    # libvirt takes the sum of the cells for the memory whenever a definition is new, and leaves what it loads as it is.
    rewritten(crowd.lab, name, lambda xml: xml.replace("<memory unit='KiB'>16384<", "<memory unit='KiB'>32768<"))
    assert "<memory unit='KiB'>32768<" in definitions(crowd.lab)[name]
    extended = Crowd(crowd.lab, crowd.folder, (*crowd.names, name), crowd.old)
    step = extended.end(extended.begin(names=(name,)))[name]
    assert (step["outcome"], step["undo"]) == ("failed", None)
    assert "defined, but more than <pmu> differs, in domain/memory" in step["reason"]
    assert "put back, but NOT exactly: libvirt reads it as another in domain/memory" in step["reason"]
    assert pmu_element(definitions(crowd.lab)[name]) == "absent"
