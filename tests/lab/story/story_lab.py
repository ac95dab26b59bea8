"""The story lab: one hypervisor from `affected` to `effective`, by exitguard's own verbs, in a virtual machine with systemd and libvirt.

Debian 12 with its own package of exitguard, two KVM guests, and Linux 6.1 as Debian has it, told of a PMU. Audit, plan, approve, apply; a
reboot into a kernel package with the guard; promote; the lever that this QEMU needs; another reboot; audit, ledger. After each
station exitguard's JSON is kept in .local/lab-results/story, and what it has to say is checked. Ends with 1 where it says otherwise, and
with 3 where the lab could not run.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "system"))  # the machine, its image and its services
sys.path.insert(0, str(Path(__file__).parents[1] / "host"))  # what the labs share

from audit_service import SETTINGS, AuditService
from debian_image import ImageError, cached_image, why_no_image
from emulated_host import LabError, boot, why_no_host
from kernel_package import KernelPackage, make_kernel_package
from machine import MachineError, why_no_machine
from story_machine import RebootingMachine

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / ".local/lab-story"
RESULTS = ROOT / ".local/lab-results/story"
KERNELS = ROOT / ".local/lab-kernels"
_FAILED, _CANNOT_RUN = 1, 3
#: What the machine boots with, and what the package brings.
_BEFORE, _AFTER = ("6.1", "stock-pmu"), ("6.12", "guarded-pmu")
_GRUB_PACKAGES = ("grub-common", "grub2-common")
_GRUB_DEFAULTS = "GRUB_DEFAULT=saved\nGRUB_TIMEOUT=0\nGRUB_DISABLE_LINUX_UUID=true\nGRUB_DISABLE_OS_PROBER=true\n"
#: Nothing boots from it here, and an emulated processor takes minutes for a whole one.
_INITRAMFS = "MODULES=list\nCOMPRESS=gzip\nCOMPRESSLEVEL=1\n"
#: An emulated processor installs a kernel some fifteen times slower than a real one.
_STEP_SECONDS = 900
#: Instructions of an exit: what clearing enable_pmu is worth at least where it is worth anything, and how far two counts may be apart.
_LEAST_SAVED, _MOST_APART = 100, 3
#: The guests run firmware that hears no power button: they are cut off at once where the host goes down, instead of five minutes later.
_LIBVIRT_GUESTS = "ON_BOOT=ignore\nON_SHUTDOWN=shutdown\nPARALLEL_SHUTDOWN=2\nSHUTDOWN_TIMEOUT=5\n"
_ARCHIVE = "/root/archive"
_POLICY = "/etc/exitguard/policy.yaml"
_MODULES = ("kvm.ko", "kvm-amd.ko")
#: Web says nothing of a PMU and would get one; batch is off by its owner's own wish. Both run SeaBIOS, which finds nothing to boot.
_GUESTS = {
    "web": ("7d0b2c1a-4e5f-4a6b-9c8d-0e1f2a3b4c5d", ""),
    "batch": ("5f1c9f6e-9d4b-4f0e-8a4b-1f7f2b1c0d11", "<features><pmu state='off'/></features>"),
}
_GUEST = """<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>{features}<cpu mode='host-passthrough'/>
<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
"""


class StoryError(Exception):
    """The story took another turn; the message says at which station, what was expected and what was found."""


class Story:
    """What is told so far, and the machine that it is told of."""

    def __init__(self, machine: RebootingMachine, results: Path) -> None:
        self.machine = machine
        self._results = results
        self._begun = time.monotonic()
        self.told: dict[str, dict[str, Any]] = {}

    def exitguard(self, words: str, *, codes: tuple[int, ...] = (0, 2, 3), timeout: float = 400) -> str:
        done = self.machine.run(f"exitguard {words}", timeout=timeout)
        if done.returncode not in codes:
            raise StoryError(f"`exitguard {words}` ended with {done.returncode}, expected one of {codes}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def document(self, words: str, **options: Any) -> Any:
        text = self.exitguard(f"{words} --format json", **options)
        try:
            return json.loads(text)
        except ValueError as error:
            raise StoryError(f"`exitguard {words} --format json` printed no JSON: {text[:500]}") from error

    def station(self, name: str, **facts: Any) -> None:
        """Keep what was found at a station, and say it."""
        self.told[name] = facts
        (self._results / "story.json").write_text(json.dumps(self.told, indent=2) + "\n")
        line = f"{time.monotonic() - self._begun:5.0f} s  {name}: {', '.join(f'{key} {value}' for key, value in facts.items())}"
        _say(line)
        with (self._results / "transcript.txt").open("a") as transcript:
            transcript.write(f"{line}\n")

    def keep(self, name: str, document: Any) -> None:
        (self._results / f"{name.replace(',', '').replace(' ', '-')}.json").write_text(json.dumps(document, indent=2) + "\n")


def expect(station: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise StoryError(f"{station}: {what}: expected {expected!r}, found {found!r}")


# --- the stations -----------------------------------------------------------------------------------------------------------------


def prepare(story: Story, exitguard: Path, kernel: KernelPackage) -> None:
    """The host as its operator has it: exitguard installed as the README says, GRUB's tools, an archive of kernels, guests that run."""
    machine = story.machine
    release = machine.output("uname -r").strip()
    for name in _MODULES:
        place = f"/lib/modules/{release}/kernel/arch/x86/kvm/{name}"
        machine.put(KERNELS / _BEFORE[0] / _BEFORE[1] / name, place)
    machine.output("depmod && (modprobe -r kvm_amd kvm || true) && modprobe kvm_amd")  # udev may have loaded Debian's own
    machine.put(Path(__file__).with_name("measure-init"), "/init")
    machine.output("chmod 755 /init")
    machine.put(exitguard, f"/root/{exitguard.name}")
    machine.output(f"apt-get -q -y install ./{exitguard.name}", timeout=400)
    machine.write("/etc/default/grub", _GRUB_DEFAULTS)
    machine.write("/etc/initramfs-tools/conf.d/lab", _INITRAMFS)
    machine.write("/etc/default/libvirt-guests", _LIBVIRT_GUESTS)
    machine.output("update-grub", timeout=200)
    machine.output(f"mkdir -p {_ARCHIVE}")
    machine.put(kernel.path, f"{_ARCHIVE}/{kernel.path.name}")
    machine.write(f"{_ARCHIVE}/Packages", _index(kernel))
    machine.output("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*")  # nothing of the network is reached from here
    machine.write("/etc/apt/sources.list.d/lab.list", f"deb [trusted=yes] file:{_ARCHIVE} ./\n")
    machine.output("apt-get -q update", timeout=200)
    machine.write(_POLICY, _policy(kernel, lever=False))
    service = AuditService(machine)
    service.enable()
    service.configure(f"{SETTINGS}policy_files: [{_POLICY}]\n")
    machine.output("systemctl restart exitguard-audit.service", timeout=300)
    for name, (uuid, features) in _GUESTS.items():
        machine.write(f"/root/{name}.xml", _GUEST.format(name=name, uuid=uuid, features=features))
        machine.output(f"virsh -q define /root/{name}.xml && virsh -q autostart {name} && virsh -q start {name}")
    story.station("prepared", kernel=release, policy=machine.output(f"exitguard config show | grep -c {_POLICY}").strip())


def audited(story: Story, station: str, kernel_state: str, chains: dict[str, str]) -> Any:
    """An audit says this of the host and of each guest."""
    report = story.document("audit --no-store")
    found = {domain["name"]: domain["chain"]["state"] for domain in report["domains"]}
    story.keep(station, report)
    story.station(station, kernel=report["host"]["kernel"]["state"], exit_code=report["summary"]["exit_code"], **found)
    expect(station, "state of the kernel", kernel_state, report["host"]["kernel"]["state"])
    expect(station, "chains of the guests", chains, found)
    return report


def changed(story: Story, station: str, remedies: set[str]) -> None:
    """A plan with these remedies, approved and carried out."""
    story.exitguard("plan --format json --output /root/plan.json")
    plan = json.loads(story.machine.output("cat /root/plan.json"))
    story.keep(f"{station} plan", plan)
    found = {step["change"]["remedy"] for step in plan["steps"]}
    expect(station, "remedies of the plan", remedies, found)
    story.exitguard("approve /root/plan.json --approver ada --comment story", codes=(0,))
    said = story.exitguard("apply /root/plan.json", codes=(0,), timeout=2 * _STEP_SECONDS)
    story.keep(f"{station} run", story.document("rollout status"))
    story.station(station, steps=len(plan["steps"]), remedies=" ".join(sorted(found)), said=said.strip().splitlines()[-1][:120])


def booked(story: Story, station: str, guard: str) -> None:
    """The daemon's ledger has exits of both guests, standing so."""
    found: dict[str, Any] = {}

    def told() -> bool:
        found.clear()
        found.update(json.loads(story.exitguard("savings --format json") or "{}"))
        running = [each for each in found.get("now", {}).get("standings", ()) if each["skip_exits_per_second"]["high"] > 0]
        return sum(each["runs"] for each in running) == len(_GUESTS) and {each["standing"]["guard"] for each in running} == {guard}

    try:
        story.machine.wait_until(f"the ledger has both guests as {guard}", told, timeout=300, every=5)
    except MachineError as error:
        raise StoryError(f"{station}: {error}\n{json.dumps(found.get('now'), indent=2)}") from error
    story.keep(station, found)
    standings = found["now"]["standings"]
    skips = sum(each["skip_exits_per_second"]["high"] for each in standings)
    held = sorted({each["standing"]["held_back_by"] or "nothing" for each in standings})
    rate = found["now"]["saved_cycles_per_second"]
    cycles = "unquantified" if rate is None else f"{rate['low']:.0f} to {rate['high']:.0f}"
    story.station(station, guard=guard, held_back_by=" ".join(held), skips_a_second_at_most=round(skips), saved_cycles=cycles)


def measured(story: Story, station: str, disk: Path, kernel: Path, arms: int) -> dict[str, float]:
    """What an exit takes with this disk and kernel, in instructions, by `exitguard measure`; by arm, and what PMU off saves."""
    folder = FOLDER / "measured"
    folder.mkdir(exist_ok=True)
    told = boot(folder, disk, kernel, "")
    text = (told / "measure").read_text()
    if (told / "measure.ended").read_text().strip() != "0":
        raise StoryError(f"{station}: `exitguard measure` did not measure: {text[:2000]}{(told / 'measure.said').read_text()[:2000]}")
    measurement = json.loads(text)
    story.keep(station, measurement)
    (loop,) = measurement["loops"]
    expect(station, "arms", arms, len(loop["arms"]))
    found: dict[str, float] = {arm["arm"]: arm["ticks_per_exit"]["median"] for arm in loop["arms"]}
    if loop["contrast"] is not None:
        found["saved_by_pmu_off"] = loop["contrast"]["ticks_per_exit"]["median"]
    story.station(station, **{name: round(ticks, 1) for name, ticks in found.items()})
    return found


def tell(story: Story, exitguard: Path, kernel: KernelPackage) -> None:
    """All of it."""
    both_held_back = dict.fromkeys(_GUESTS, "not_propagated")
    prepare(story, exitguard, kernel)
    audited(story, "1 before", "affected", {"web": "on", "batch": "not_propagated"})
    booked(story, "1 before, ledger", "available")
    changed(story, "2 first plan", {"kernel_guard", "domain_pmu_off"})
    before = rebooted(story, "3 first reboot", kernel, arms=2)
    expect("3 first reboot", "an exit is worth the lever", True, before["saved_by_pmu_off"] > _LEAST_SAVED)
    audited(story, "4 guarded", "guarded", both_held_back)
    story.machine.write(_POLICY, _policy(kernel, lever=True))
    changed(story, "5 second plan", {"kernel_guard", "kvm_enable_pmu_off"})
    after = rebooted(story, "6 second reboot", kernel, arms=1)
    apart = after["as_created"] - before["pmu_off"]
    expect("6 second reboot", "each guest's exit takes what one with its PMU off took", True, abs(apart) <= _MOST_APART)
    audited(story, "7 after", "guarded", dict.fromkeys(_GUESTS, "effective"))
    booked(story, "7 after, ledger", "saved")
    (RESULTS / "finished").touch()


def rebooted(story: Story, station: str, kernel: KernelPackage, *, arms: int) -> dict[str, float]:
    """The kernel with the guard runs: chosen for one boot the first time, and the default from then on. While it is off it is measured."""
    found: dict[str, float] = {}

    def while_off(disk: Path, chosen: Path) -> None:
        found.update(measured(story, f"{station}, measured", disk, chosen, arms))

    expect(station, "kernel that GRUB chose", f"vmlinuz-{kernel.release}", story.machine.reboot(while_off))
    machine = story.machine
    machine.wait_until("the guests run again", lambda: sorted(machine.output("virsh -q list --name").split()) == sorted(_GUESTS))
    story.station(
        station, kernel=machine.output("uname -r").strip(), enable_pmu=machine.output("cat /sys/module/kvm/parameters/enable_pmu").strip()
    )
    return found


# --- what it is made of -----------------------------------------------------------------------------------------------------------


def _index(kernel: KernelPackage) -> str:
    control = subprocess.run(["dpkg-deb", "--field", str(kernel.path)], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(kernel.path.read_bytes()).hexdigest()
    return f"{control}Filename: ./{kernel.path.name}\nSize: {kernel.path.stat().st_size}\nSHA256: {digest}\n"


def _policy(kernel: KernelPackage, *, lever: bool) -> str:
    """The shipped policy with this kernel pinned; with `lever`, the rule on QEMU is answered by kvm.enable_pmu=N in place of a QEMU."""
    pin = f"{{name: {kernel.name}, version: {kernel.version}}}"
    shipped = (ROOT / "policies/pmu-off.yaml").read_text()
    if lever:
        shipped = shipped.replace("remedy: qemu_pmu_cap", "remedy: kvm_enable_pmu_off")
    kernels = f"[{{distribution: debian, distribution_version: '12', release: {kernel.release}, packages: [{pin}]}}]"
    remedies = f"  allowed: [domain_pmu_off, kernel_guard, kvm_enable_pmu_off]\n  kernels: {kernels}\n"
    remedies += f"  rollout: {{step_timeout_seconds: {_STEP_SECONDS}}}\n  opted_out_guests_stay_away: {str(lever).lower()}\n"
    return f"{shipped}\nremedies:\n{remedies}"


def _package() -> Path:
    """The Debian package of this checkout; EXITGUARD_PACKAGE names one that is built already."""
    if ready := os.environ.get("EXITGUARD_PACKAGE"):
        return Path(ready).absolute()
    folder = FOLDER / "package"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["scripts/build_deb.sh", "--output", str(folder)], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return next(folder.glob("exitguard_*.deb"))


def _why_not() -> str | None:
    for lineage, variant in (_BEFORE, _AFTER):
        if not (KERNELS / lineage / variant / "kvm.ko").exists():
            return f"{KERNELS / lineage / variant} is missing: `make lab-kernels` builds it"
    missing = [program for program in ("debugfs", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        return f"missing: {', '.join(missing)}"
    return why_no_image() or why_no_machine() or why_no_host()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    missing = _why_not()
    if missing is not None:
        _say(f"The story lab cannot run here: {missing}")
        return _CANNOT_RUN
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        image = cached_image(FOLDER / "image", _GRUB_PACKAGES)
        kernel = make_kernel_package(KERNELS / _AFTER[0], _AFTER[1], FOLDER / "kernel")
        exitguard = _package()
        with RebootingMachine(image, FOLDER / "machine", memory_mib=2048) as machine:
            tell(Story(machine, RESULTS), exitguard, kernel)
    except ImageError as error:
        _say(f"The story lab cannot run here: {error}")
        return _CANNOT_RUN
    except (StoryError, MachineError, LabError) as error:
        _say(str(error))
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
