"""The playbook kernel_guard, played by the real ansible-playbook inside a small Debian with GRUB's own tools and a real apt archive.

The kernels are packages made here: kvm.ko is a module compiled with or without the guard, the rest of a kernel is left out. What runs in
the root is this machine's kernel. Not real there: a disk that grub-probe could name, and sysfs, which holds what a test puts there. An
EL 9 does not run here.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from debian_root import REPOSITORY, DebianRoot, clean_root

sys.path.insert(0, str(REPOSITORY / "tests/facts/machine_code"))

from standin_builder import CONFIGURATIONS, VARIANTS, Build, Shape, Sources, StandinBuilder, why_not

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PLAYBOOK = REPOSITORY / "playbooks" / "kernel_guard.yml"
RUNNING = Path("/proc/sys/kernel/osrelease").read_text().strip()
#: Higher than any kernel that may run here: GRUB's menu begins with it.
RELEASE = "99.1.0-1-exitguard"
ARCHIVE = "/srv/archive"
PYTHON = REPOSITORY / ".venv/bin/python"
INSPECT = [str(PYTHON), "-m", "exitguard", "kernel", "inspect"]
# How much room this machine has is its own business.
INSTALL = {"release": RELEASE, "inspect_command": INSPECT, "root_free_mib": 1, "boot_free_mib": 1}
GUARDED = [{"name": "linux-guarded", "version": "1"}]
DEPENDS = "python3, grub2-common, grub-common"
# Ansible, the agent and their Python, read-only; a Python below /usr is the root's own, and the same.
SHOWN = [
    *(REPOSITORY / name for name in (".venv", "agent", "policies", "playbooks")),
    *([] if sys.base_prefix == "/usr" else [Path(sys.base_prefix)]),
]
# A chroot lies on no device that GRUB could name.
GRUB_PROBE = """#!/bin/sh
case " $* " in
*abstraction*) cat /srv/abstraction 2>/dev/null || : ;;
*fs_uuid*) echo 0b5f6a2c-7f0e-4f3c-9a57-2d8f2b1c4e11 ;;
*partmap*) echo msdos ;;
*--target=fs*) echo ext2 ;;
*device*) echo /dev/sda1 ;;
*hints_string*|*compatibility_hint*) echo hd0,msdos1 ;;
esac
"""
# What the script of a kernel package of Debian's comes down to.
HOOKS = """#!/bin/sh
set -e
{before}
[ "$1" = configure ] || [ "$1" = remove ] || exit 0
DEB_MAINT_PARAMS="$*" run-parts --arg={release} --arg=/boot/vmlinuz-{release} /etc/kernel/postinst.d
"""


# A module as Ansible would run it on the host, without what Ansible does around it, which takes longer than the module.
BY_ITSELF = """
import runpy, sys
import ansible.module_utils
from ansible.module_utils import basic
playbooks, module, arguments = sys.argv[1:]
ansible.module_utils.__path__.append(playbooks + "/module_utils")
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = arguments.encode(), "legacy"
runpy.run_path(f"{playbooks}/library/{module}.py", run_name="__main__")
"""


@dataclass(frozen=True)
class Answer:
    """What a host was asked to do, and what it said: the outcome that exitguard would collect."""

    output: str
    changed: bool
    outcome: str
    reason: str


def answer(result: "subprocess.CompletedProcess[str]", said: dict[str, Any]) -> Answer:
    (step,) = said["exitguard"]["steps"]
    output = result.stdout + result.stderr
    assert step["subject"] == "host"
    assert (result.returncode != 0) == (step["outcome"] in ("refused", "failed")), output
    return Answer(output, bool(said.get("changed")), step["outcome"], step["reason"])


@dataclass
class Host:
    """A small Debian whose running kernel is a package, with GRUB that boots its saved entry."""

    root: DebianRoot

    def play(self, *options: str, around: str = "", **variables: object) -> Answer:
        """Play the playbook; `around` is a line of shell that prepares its namespaces, such as a mount."""
        wanted = {f"kernel_guard_{name}": value for name, value in {**INSTALL, "packages": GUARDED, **variables}.items()}
        settings = json.dumps({"ansible_python_interpreter": "/usr/bin/python3", "exitguard_become": False, **wanted})
        ansible = [PYTHON, "-m", "ansible", "playbook", "-v", "-i", "hv1,", "-c", "local", "-e", settings, *options, PLAYBOOK]
        result = self._run(ansible, around)
        for at in re.finditer(r"^(?:ok|changed|fatal): \[hv1\].*?=> (?=\{)", result.stdout, re.MULTILINE):
            said, _ = json.JSONDecoder().raw_decode(result.stdout, at.end())
            if "exitguard" in said:
                assert (" changed=0 " in result.stdout.rpartition("PLAY RECAP")[2]) != said.get("changed", False)
                return answer(result, said)
        pytest.fail(f"no outcome:\n{result.stdout}{result.stderr}")

    def install(self, *, around: str = "", check: bool = False, packages: Sequence[dict[str, str]] = GUARDED, **options: object) -> Answer:
        """Run the module of the first stage."""
        return self._ask("exitguard_kernel_install", {**INSTALL, "packages": packages, **options}, around, check=check)

    def promote(self, *, around: str = "", check: bool = False, release: str = RUNNING) -> Answer:
        """Run the module of the second stage."""
        return self._ask("exitguard_kernel_promote", {"release": release, "inspect_command": INSPECT}, around, check=check)

    def _ask(self, module: str, options: dict[str, object], around: str, *, check: bool) -> Answer:
        arguments = json.dumps({"ANSIBLE_MODULE_ARGS": {**options, "_ansible_check_mode": check, "_ansible_diff": True}})
        result = self._run([PYTHON, "-c", BY_ITSELF, PLAYBOOK.parent, module, arguments], around)
        assert result.stdout.startswith("\n{"), result.stdout + result.stderr
        return answer(result, json.loads(result.stdout))

    def _run(self, command: Sequence[str | Path], around: str) -> "subprocess.CompletedProcess[str]":
        environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        within = ["sh", "-ec", f'{around or ":"}\nexec "$@"', "sh"]
        return self.root.run(*within, *command, environment=environment, shows=SHOWN)

    def installed(self) -> set[str]:
        """The packages that are there, half-way too."""
        listed = self.root.must("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n")
        return {name for status, name in (line.split() for line in listed.splitlines()) if status != "not-installed"}

    def environment(self) -> dict[str, str]:
        lines = self.root.must("grub-editenv", "/boot/grub/grubenv", "list").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def state(self) -> tuple[set[str], bytes, bytes, list[str]]:
        """All that a refusal has to leave as it was."""
        left = sorted(path.name for path in self.root.at("/var/tmp").iterdir())  # noqa: S108 - of the root
        return self.installed(), self._boot("grubenv"), self._boot("grub.cfg"), left

    def put_back(self, before: bytes) -> None:
        """Take away what a test has installed, and let GRUB boot what it booted before."""
        extra = [name for name in self.installed() if name.startswith("linux-") and name != "linux-running"]
        if extra:
            self.root.must("dpkg", "--purge", *extra)
            self.root.must("update-grub")
        self.root.at("/boot/grub/grubenv").write_bytes(before)

    def _boot(self, name: str) -> bytes:
        return self.root.at(f"/boot/grub/{name}").read_bytes()


def spec(release: str) -> str:
    disk = "0b5f6a2c-7f0e-4f3c-9a57-2d8f2b1c4e11"
    return f"gnulinux-advanced-{disk}>gnulinux-{release}-advanced-{disk}"


def put_module(module: Path, path: Path, release: str) -> None:
    """A compiled kvm.ko as that of a release: the release stands in what modinfo(8) shows."""
    modinfo = path.with_name("modinfo")
    modinfo.write_bytes(f"vermagic={release} SMP preempt mod_unload \0".encode())
    subprocess.run(["objcopy", "--update-section", f".modinfo={modinfo}", module, path], check=True)
    modinfo.unlink()


def make_package(
    folder: Path, module: Path | None, *, name: str, version: str = "1", release: str = RELEASE, before: str = ":", **fields: str
) -> Path:
    """A kernel package, or with no module one without a kernel."""
    tree = folder / f"{name}_{version}"
    control = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "test <test@exitguard.invalid>",
        "Description": "test",
    }
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in {**control, **fields}.items()))
    if module is not None:
        kvm = tree / f"lib/modules/{release}/kernel/arch/x86/kvm/kvm.ko"
        kvm.parent.mkdir(parents=True)
        put_module(module, kvm, release)
        (tree / "boot").mkdir()
        (tree / f"boot/vmlinuz-{release}").write_text("no image, but not empty\n")
        for script in ("postinst", "postrm"):
            (tree / "DEBIAN" / script).write_text(HOOKS.format(release=release, before=before if script == "postinst" else ":"))
            (tree / "DEBIAN" / script).chmod(0o755)
    deb = folder / f"{name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    shutil.rmtree(tree)
    return deb


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """kvm.ko of a guarded and of an affected kernel."""
    builds = {
        name: Build(VARIANTS[variant], Shape.A, CONFIGURATIONS[0], Sources.CODE)
        for name, variant in (("guarded", "unlikely"), ("affected", "none"))
    }
    missing = why_not(builds["guarded"])
    if missing is not None:
        pytest.skip(missing)
    builder = StandinBuilder(tmp_path_factory.mktemp("modules"))
    found = {name: builder.module(build) for name, build in builds.items()}
    builder.close()
    return found


@pytest.fixture(scope="module")
def prepared(needs_root: None, modules: dict[str, Path]) -> Iterator[Host]:  # noqa: ARG001 - skips
    with clean_root(DEPENDS) as root:
        archive = root.at(ARCHIVE)
        archive.mkdir(parents=True)
        guarded, affected = modules["guarded"], modules["affected"]
        running = make_package(archive, affected, name="linux-running", release=RUNNING)
        shutil.move(running, root.at("/root/running.deb"))
        make_package(archive, guarded, name="linux-guarded")
        make_package(archive, guarded, name="linux-guarded", version="2", before="echo this kernel does not install >&2; exit 7")
        make_package(archive, affected, name="linux-affected")
        make_package(archive, guarded, name="linux-conflicting", Conflicts="linux-running")
        make_package(archive, guarded, name="linux-depending", Depends="linux-firmware")
        make_package(archive, None, name="linux-firmware")
        make_package(archive, guarded, name="linux-over-running", release=RUNNING)
        scanned = subprocess.run(["dpkg-scanpackages", "--multiversion", "."], cwd=archive, check=True, capture_output=True, text=True)
        (archive / "Packages").write_text(scanned.stdout)
        root.at("/etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{ARCHIVE} ./\n")
        root.at("/usr/sbin/grub-probe").write_text(GRUB_PROBE)
        root.at("/etc/default/grub").write_text("GRUB_DEFAULT=saved\nGRUB_TIMEOUT=1\n")
        root.at("/boot/grub").mkdir(parents=True, exist_ok=True)
        root.must("grub-editenv", "/boot/grub/grubenv", "create")
        root.must("update-grub")
        root.must("dpkg", "--install", "/root/running.deb")
        root.must("apt-get", "--quiet", "update")
        root.run("true", shows=SHOWN)  # the folders to show them in are there from now on
        yield Host(root)


@pytest.fixture
def host(prepared: Host) -> Iterator[Host]:
    before = prepared.root.at("/boot/grub/grubenv").read_bytes()
    yield prepared
    prepared.put_back(before)


def pinned(name: str, version: str = "1") -> dict[str, str]:
    return {"name": name, "version": version}


def expect_refused(host: Host, *, around: str = "", packages: Sequence[dict[str, str]] = GUARDED, **options: object) -> str:
    """The reason of a refusal that left everything as it was."""
    before = host.state()
    said = host.install(around=around, packages=packages, **options)
    assert said.outcome == "refused", said.output
    assert "nothing was changed" in said.reason
    assert host.state() == before
    return said.reason


def test_guarded_kernel_is_installed_and_booted_once_and_a_second_run_changes_nothing(host: Host) -> None:
    untouched = host.state()
    check = host.play("--check", "--diff")
    assert check.outcome == "done", check.output
    assert check.changed
    assert check.reason.startswith("would install it, and boot it once at the next reboot")
    assert "+linux-guarded 1" in check.output
    assert host.state() == untouched

    play = host.play()
    assert play.outcome == "done", play.output
    assert "linux-guarded" in host.installed()
    assert host.environment() == {"saved_entry": spec(RUNNING), "next_entry": spec(RELEASE)}
    assert "guarded" in play.reason
    assert f"{RUNNING} stays the default" in play.reason

    done = host.state()
    for options in ((), ("--check",)):
        again = host.play(*options)
        assert again.outcome == "already", again.output
        assert not again.changed
        assert host.state() == done


def test_kernel_that_was_booted_once_and_left_is_chosen_once_more(host: Host) -> None:
    assert host.install().outcome == "done"
    host.root.must("grub-editenv", "/boot/grub/grubenv", "unset", "next_entry")  # as GRUB does when it boots it
    again = host.install()
    assert again.outcome == "done", again.output
    assert host.environment()["next_entry"] == spec(RELEASE)


def test_affected_kernel_is_refused_with_its_state_and_nothing_is_installed(host: Host) -> None:
    untouched = host.state()
    play = host.play(packages=[pinned("linux-affected")])
    assert play.outcome == "refused", play.output
    assert f"kernel {RELEASE} is affected: kvm_pmu_trigger_event is called wherever an instruction was skipped" in play.reason
    assert host.state() == untouched


def test_kernel_of_another_release_than_was_named_is_refused(host: Host) -> None:
    assert f"holds kernel {RELEASE}, expected 98.0.0-1" in expect_refused(host, release="98.0.0-1")


def test_version_that_the_archive_does_not_have_is_refused_with_those_it_has(host: Host) -> None:
    reason = expect_refused(host, packages=[pinned("linux-guarded", "1.5")])
    assert "not to be had from this host's archives: linux-guarded 1.5. Found linux-guarded: 2, 1" in reason


def test_word_that_is_no_version_reaches_no_program(host: Host) -> None:
    reason = host.install(packages=[pinned("linux-guarded", "1 -o Dpkg::Pre-Invoke::=id")]).reason
    assert "found '1 -o Dpkg::Pre-Invoke::=id'" in reason


def test_boot_that_is_too_small_is_refused(host: Host) -> None:
    boot = "mkdir /tmp/old && cp -a /boot/. /tmp/old && mount -t tmpfs -o size=8m tmpfs /boot && cp -a /tmp/old/. /boot && rm -r /tmp/old"
    assert "/boot has 7 MiB free, expected at least 200" in expect_refused(host, around=boot, boot_free_mib=200)


def test_boot_that_is_not_mounted_is_refused(host: Host) -> None:
    host.root.at("/srv/fstab").write_text("/dev/sda1 /boot ext4 defaults 0 2\n")
    reason = expect_refused(host, around="touch /etc/fstab && mount --bind /srv/fstab /etc/fstab")
    assert "/boot: a file system of its own by /etc/fstab, and not mounted" in reason


def test_dkms_modules_without_headers_are_refused_by_name(host: Host) -> None:
    dkms = host.root.at("/usr/sbin/dkms")
    dkms.write_text(f"#!/bin/sh\necho 'zfs/2.1.11, {RUNNING}, x86_64: installed'\n")
    dkms.chmod(0o755)
    try:
        reason = expect_refused(host)
    finally:
        dkms.unlink()
    assert f"DKMS modules have no build for {RELEASE}: zfs/2.1.11. Expected linux-headers-{RELEASE}" in reason


def test_installation_that_would_remove_a_package_is_refused(host: Host) -> None:
    assert "linux-running" in expect_refused(host, packages=[pinned("linux-conflicting")])


def test_dependency_that_nobody_pinned_is_refused_and_installed_where_it_is_pinned(host: Host) -> None:
    reason = expect_refused(host, packages=[pinned("linux-depending")])
    assert "it would also install linux-firmware 1, which nobody pinned" in reason
    said = host.install(packages=[pinned("linux-depending"), pinned("linux-firmware")])
    assert said.outcome == "done", said.output


def test_packages_of_the_running_release_are_refused_since_no_old_kernel_would_be_left(host: Host) -> None:
    reason = expect_refused(host, packages=[pinned("linux-over-running")], release=RUNNING)
    assert "would leave no old kernel to go back to" in reason


@pytest.mark.parametrize("default", ["0", "1>2"])
def test_grub_that_does_not_boot_its_saved_entry_is_refused_with_what_to_set(host: Host, default: str) -> None:
    settings = host.root.at("/etc/default/grub")
    kept = settings.read_text()
    settings.write_text(kept.replace("saved", default))
    try:
        # Not in grub.cfg yet: the package's own update-grub would bring it in.
        assert f"GRUB_DEFAULT is {default}, expected saved" in expect_refused(host)
        host.root.must("update-grub")
        assert "Set GRUB_DEFAULT=saved in /etc/default/grub and run update-grub" in expect_refused(host)
    finally:
        settings.write_text(kept)
        host.root.must("update-grub")


def test_environment_block_that_grub_cannot_write_is_refused(host: Host) -> None:
    host.root.at("/srv/abstraction").write_text("lvm\n")
    try:
        reason = expect_refused(host)
    finally:
        host.root.at("/srv/abstraction").unlink()
    assert "it lies on lvm, to which GRUB cannot write, so an entry for one boot would stay for ever" in reason


def test_choice_that_somebody_else_made_for_the_next_boot_is_refused(host: Host) -> None:
    host.root.must("grub-reboot", "1>0")
    assert "somebody has chosen '1>0' for the next boot" in expect_refused(host)


def test_saved_default_that_is_not_the_running_kernel_is_refused(host: Host) -> None:
    assert host.install().outcome == "done"
    host.root.must("grub-set-default", spec(RELEASE))
    host.root.must("grub-editenv", "/boot/grub/grubenv", "unset", "next_entry")
    reason = expect_refused(host, packages=[pinned("linux-guarded", "2")], release="99.2.0-1-exitguard")
    assert f"the saved default of GRUB is kernel {RELEASE}, and {RUNNING} runs" in reason


def test_kernel_that_fails_to_install_leaves_the_running_one_the_default_and_says_so(host: Host) -> None:
    play = host.play(packages=[pinned("linux-guarded", "2")])
    assert play.outcome == "failed", play.output
    assert f"The default stays kernel {RUNNING}, and nothing is chosen for the next boot" in play.reason
    assert "linux-guarded" in play.reason
    assert host.environment() == {"saved_entry": spec(RUNNING)}
    # What is left half-way is named to the next one who tries.
    assert "dpkg left packages half-way: linux-guarded" in expect_refused(host)


def test_host_without_exitguard_is_refused(host: Host) -> None:
    assert "gave no answer" in expect_refused(host, inspect_command=["/usr/bin/exitguard", "kernel", "inspect"])


@pytest.fixture
def booted(host: Host, modules: dict[str, Path]) -> Iterator[Host]:
    """The host as after the reboot: what runs is the new kernel, by its file and by what it shows of itself. It is not the default."""
    kvm = host.root.at(f"/lib/modules/{RUNNING}/kernel/arch/x86/kvm/kvm.ko")
    note = host.root.at("/sys/module/kvm/notes/.note.gnu.build-id")
    note.parent.mkdir(parents=True)
    host.root.at("/sys/kernel/livepatch").mkdir(parents=True)
    host.root.at("/sys/module/kvm/initstate").write_text("live\n")
    put_module(modules["guarded"], kvm, RUNNING)
    subprocess.run(
        ["objcopy", "-O", "binary", "--only-section=.note.gnu.build-id", "--set-section-flags", ".note.gnu.build-id=alloc", kvm, note],
        check=True,
    )
    yield host
    for name in ("module", "kernel"):
        shutil.rmtree(host.root.at(f"/sys/{name}"))
    put_module(modules["affected"], kvm, RUNNING)


KVM = "mknod /dev/kvm c 10 232"


def test_kernel_that_runs_and_is_healthy_becomes_the_default(booted: Host) -> None:
    before = booted.state()
    check = booted.promote(around=KVM, check=True)
    assert (check.outcome, check.changed) == ("done", True), check.output
    assert booted.state() == before

    play = booted.play(around=KVM, stage="promote", release=RUNNING, packages=[])
    assert play.outcome == "done", play.output
    assert booted.environment() == {"saved_entry": spec(RUNNING)}
    assert "systemd does not run here, so it was not asked" in play.reason

    again = booted.promote(around=KVM)
    assert (again.outcome, again.changed) == ("already", False)


@pytest.mark.parametrize(
    ("around", "reason"),
    [
        (":", "there is no /dev/kvm"),
        (
            f"{KVM}; echo 128 >/tmp/tainted; mount --bind /tmp/tainted /proc/sys/kernel/tainted",
            "the kernel died (oops or BUG) since it booted",
        ),
        (
            f"{KVM}; printf '#!/bin/sh\necho no socket >&2; exit 1' >/dev/virsh; chmod +x /dev/virsh; PATH=$PATH:/dev",
            "libvirt does not answer",
        ),
    ],
    ids=["no kvm", "oops", "no libvirt"],
)
def test_host_that_is_not_healthy_keeps_its_default(booted: Host, around: str, reason: str) -> None:
    before = booted.state()
    said = booted.promote(around=around)
    assert said.outcome == "refused"
    assert reason in said.reason
    assert booted.state() == before


def test_running_kernel_without_the_guard_is_not_promoted(booted: Host, modules: dict[str, Path]) -> None:
    put_module(modules["affected"], booted.root.at(f"/lib/modules/{RUNNING}/kernel/arch/x86/kvm/kvm.ko"), RUNNING)
    before = booted.state()
    said = booted.promote(around=KVM)
    assert said.outcome == "refused"
    assert f"kernel {RUNNING} is unknown" in said.reason, "the file is not that of what runs"
    assert booted.state() == before


def test_promotion_on_another_kernel_is_refused(host: Host) -> None:
    said = host.promote(release=RELEASE)
    assert said.outcome == "refused"
    assert f"kernel {RUNNING} runs, expected {RELEASE}: reboot the host first" in said.reason
