"""playbooks/kvm_enable_pmu_off.yml with real initramfs images, made by initramfs-tools in a small Debian.

The kernels are folders of modules: one has a kvm.ko, which initramfs-tools is told to take along, and the other has none.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from debian_root import REPOSITORY, DebianRoot, clean_root

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

DEPENDS = "initramfs-tools, kmod, python3, python3-libvirt"
PLAYBOOK = REPOSITORY / "playbooks" / "kvm_enable_pmu_off.yml"
OWN_FILE = "/etc/modprobe.d/exitguard-kvm-enable-pmu.conf"
CONTROL = "/srv/control"
WITH_KVM, PLAIN = "6.1.0-90-with-kvm", "6.1.0-91-plain"
SHOWN = [REPOSITORY / ".venv", REPOSITORY / "playbooks", *([] if sys.base_prefix == "/usr" else [Path(sys.base_prefix)])]


@dataclass
class Host:
    root: DebianRoot

    def play(self, *options: str, **variables: Any) -> dict[str, Any]:
        settings = {
            "ansible_python_interpreter": "/usr/bin/python3",
            "kvm_enable_pmu_off_opted_out_guests_stay_away": True,
            "kvm_enable_pmu_off_uri": f"test://{CONTROL}/node.xml",
            **variables,
        }
        words = ["-m", "ansible", "playbook", "-i", "hv,", "-c", "local", "-e", json.dumps(settings), "-v", *options, PLAYBOOK]
        environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"ANSIBLE_DISPLAY_FAILED_STDERR": "0", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
        done = self.root.run(REPOSITORY / ".venv/bin/python", *words, environment=environment, shows=SHOWN)
        line = next((line for line in done.stdout.splitlines() if '"exitguard": {"steps"' in line), None)
        assert line is not None, done.stdout + done.stderr
        (step,) = json.loads(line.partition(" => ")[2])["exitguard"]["steps"]
        return dict(step)

    def configured(self, release: str) -> bool:
        """Whether our file is in the image of this kernel."""
        listing = self.root.must("lsinitramfs", f"/boot/initrd.img-{release}")
        assert f"{release}/modules.dep" in listing
        return OWN_FILE.lstrip("/") in listing

    def times(self) -> list[int]:
        return [self.root.at(f"/boot/initrd.img-{release}").stat().st_mtime_ns for release in (WITH_KVM, PLAIN)]


@pytest.fixture(scope="module")
def host(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:  # noqa: ARG001 - skips
    if shutil.which("gcc") is None:
        pytest.skip("missing: gcc (`make test` installs what it can)")
    with clean_root(DEPENDS) as root:
        source = tmp_path_factory.mktemp("module") / "kvm.c"
        source.write_text('__attribute__((section(".modinfo"))) const char license[] = "license=GPL";\n')
        for release in (WITH_KVM, PLAIN):
            folder = root.at(f"/lib/modules/{release}")
            (folder / "kernel/arch/x86/kvm").mkdir(parents=True)
            for name in ("modules.order", "modules.builtin"):
                (folder / name).write_text("")
            if release == WITH_KVM:
                subprocess.run(["gcc", "-c", "-o", folder / "kernel/arch/x86/kvm/kvm.ko", source], check=True)
            root.must("depmod", release)
            root.at(f"/boot/vmlinuz-{release}").write_text("")
            root.at(f"/boot/config-{release}").write_text("CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n")
        root.at("/etc/initramfs-tools/modules").write_text("kvm\n")
        root.at("/etc/initramfs-tools/conf.d/small").write_text("MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\n")
        for release in (WITH_KVM, PLAIN):
            root.must("update-initramfs", "-c", "-k", release)
        module = root.at("/sys/module/kvm")
        (module / "parameters").mkdir(parents=True)
        (module / "initstate").write_text("live\n")
        (module / "parameters/enable_pmu").write_text("Y\n")
        root.at(CONTROL).mkdir()
        root.at(f"{CONTROL}/node.xml").write_text("<node/>")
        root.run("true", shows=SHOWN)  # the folders to show them in are there from now on
        yield Host(root)


def test_initramfs_with_kvm_is_made_anew_in_both_directions_and_no_other(host: Host) -> None:
    before = host.times()
    check = host.play("--check")
    assert check["outcome"] == "done"
    assert f", and in /boot/initrd.img-{WITH_KVM};" in check["reason"]
    assert host.times() == before

    done = host.play()
    assert done == check
    assert (host.configured(WITH_KVM), host.configured(PLAIN)) == (True, False)
    assert host.times()[1] == before[1]
    assert host.play()["outcome"] == "already"

    back = host.play(kvm_enable_pmu_off_state="absent")
    assert back["outcome"] == "done"
    assert not host.root.at(OWN_FILE).exists()
    assert (host.configured(WITH_KVM), host.configured(PLAIN)) == (False, False)
    assert host.play(kvm_enable_pmu_off_state="absent")["outcome"] == "already"


def test_image_that_cannot_be_made_anew_is_told_and_a_second_run_goes_on(host: Host) -> None:
    hook = host.root.at("/etc/initramfs-tools/hooks/broken")
    hook.write_text("#!/bin/sh\n[ \"$1\" = prereqs ] && exit 0\necho 'E: broken on purpose' >&2\nexit 1\n")
    hook.chmod(0o755)
    step = host.play()
    hook.unlink()
    assert step["outcome"] == "failed"
    assert f"{OWN_FILE} is written, but not into /boot/initrd.img-{WITH_KVM}: update-initramfs -u -k {WITH_KVM} failed" in step["reason"]
    assert "run the playbook again, which goes on from here" in step["reason"]
    assert host.play()["outcome"] == "done"
    assert host.configured(WITH_KVM)


def test_image_that_cannot_be_read_is_refused(host: Host) -> None:
    broken = host.root.at("/boot/initrd.img-6.1.0-92-torn")
    broken.write_bytes(b"\x1f\x8b\x08\x00 torn")
    host.root.at(OWN_FILE).unlink(missing_ok=True)
    step = host.play()
    broken.unlink()
    assert step["outcome"] == "refused"
    assert "what is in /boot/initrd.img-6.1.0-92-torn cannot be told" in step["reason"]
    assert not host.root.at(OWN_FILE).exists()
