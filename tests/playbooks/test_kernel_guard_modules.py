"""The pure parts of the modules behind playbooks/kernel_guard.yml, on recorded files; tests/deploy/test_kernel_guard_role.py has the rest.

What they read out of grub.cfg is compared with how exitguard itself reads it, which was written apart from it.
"""

import ast
import contextlib
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.grub import next_bls_release, next_menu_release, parse_bls_entry, parse_grub_config

REPOSITORY = Path(__file__).resolve().parents[2]
PLAYBOOKS = REPOSITORY / "playbooks"
ROLE = PLAYBOOKS / "roles/kernel_guard"
RECORDED = REPOSITORY / "tests/facts/boot"
SOURCES = sorted([*PLAYBOOKS.glob("library/exitguard_kernel_*.py"), *PLAYBOOKS.glob("module_utils/exitguard_*.py")])


def load(name: str) -> ModuleType:
    """A file of module_utils as a module; it is part of no package here."""
    spec = importlib.util.spec_from_file_location(name, PLAYBOOKS / f"module_utils/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


grub, host, packages = (load(f"exitguard_{name}") for name in ("grub", "kernel_host", "kernel_packages"))


def recorded(case: str) -> Path:
    return RECORDED / case / "tree"


def loader_of(root: Path, config: str, **environment: str) -> object:
    """What is read of a tree with this grub.cfg and this environment block."""
    folder = root / "boot/grub"
    folder.mkdir(parents=True)
    (folder / "grub.cfg").write_text(config)
    lines = "# GRUB Environment Block\n" + "".join(f"{name}={value}\n" for name, value in environment.items())
    (folder / "grubenv").write_text(lines + "#" * (1024 - len(lines)))
    (root / "etc/default").mkdir(parents=True)
    (root / "etc/default/grub").write_text('GRUB_DEFAULT="saved"  # as exitguard asks\n')
    return grub.read_boot_loader(root)


HEADER = (
    'if [ "${next_entry}" ] ; then\n   set default="${next_entry}"\n   save_env next_entry\nelse\n   set default="${saved_entry}"\nfi\n'
)


@pytest.mark.parametrize("case", ["debian12-default-0", "debian12-saved-title-path", "debian12-one-shot-index-path"])
def test_entry_found_for_a_release_is_the_one_that_grub_would_boot(case: str) -> None:
    text = (recorded(case) / "boot/grub/grub.cfg").read_text()
    config = parse_grub_config(text.replace('default="0"', 'default="${saved_entry}"'))
    entries = [entry for entry in grub.parse_menu(text) if entry.stable and not entry.recovery]
    assert {entry.release for entry in entries} == {"6.1.0-50-cloud-amd64", "6.1.0-56-cloud-amd64"}
    for entry in entries:
        assert next_menu_release(config, {"saved_entry": entry.spec}) == entry.release


def test_loader_entry_found_for_a_release_is_the_one_that_grub_would_boot() -> None:
    tree = recorded("el9-bls-one-shot")
    loader = grub.read_boot_loader(tree)
    files = sorted((tree / "boot/loader/entries").glob("*.conf"))
    known = [parse_bls_entry(path.name, path.read_text()) for path in files]
    config = parse_grub_config(loader.config)
    assert loader.prefix == "grub2"
    for release in ("5.14.0-503.11.1.el9_5.x86_64", "5.14.0-503.9.1.el9_5.x86_64"):
        entry = loader.entry_for(release)
        assert loader.release_of(entry.spec) == release
        assert next_bls_release(config, {"saved_entry": entry.spec}, known) == release


def test_default_that_is_saved_by_its_titles_is_recognised(tmp_path: Path) -> None:
    text = (recorded("debian12-saved-title-path") / "boot/grub/grub.cfg").read_text()
    saved = "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-50-cloud-amd64"
    loader = loader_of(tmp_path, text, saved_entry=saved)
    assert loader.release_of(loader.saved) == "6.1.0-50-cloud-amd64"


@pytest.mark.parametrize("saved", ["", "0", "1>2", "Debian GNU/Linux", "gnulinux-simple-0b5f6a2c-7f0e-4f3c-9a57-2d8f2b1c4e11", "not there"])
def test_default_that_another_kernel_would_take_over_names_no_release(tmp_path: Path, saved: str) -> None:
    text = (recorded("debian12-saved-title-path") / "boot/grub/grub.cfg").read_text()
    assert loader_of(tmp_path, text).release_of(saved) is None


def test_release_that_begins_like_another_is_not_taken_for_it(tmp_path: Path) -> None:
    menu = "".join(f"menuentry 'Linux' --id a-{name} {{\n linux /vmlinuz-6.1.0-5 ro\n}}\n" for name in ("6.1.0-56", "6.1.0-5"))
    assert loader_of(tmp_path, HEADER + menu).entry_for("6.1.0-5").spec == "a-6.1.0-5"


def test_rescue_entry_is_never_the_entry_of_a_release(tmp_path: Path) -> None:
    menu = "menuentry 'Linux 6.1.0-5 (recovery mode)' {\n linux /vmlinuz-6.1.0-5 ro single\n}\n"
    with pytest.raises(grub.GrubError, match=r"expected a menu entry that loads vmlinuz-6\.1\.0-5 and is named after it"):
        loader_of(tmp_path, HEADER + menu).entry_for("6.1.0-5")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('set default="${saved_entry}"\n', "does not boot next_entry and forget it"),
        (HEADER.replace("   save_env next_entry\n", ""), "does not boot next_entry and forget it"),
        (HEADER.replace("${saved_entry}", "0"), "its default is 0, not saved_entry"),
        (HEADER + "menuentry 'Linux' {\n", "ends within a menu entry"),
        (HEADER + "}\n", "closes a block that was never opened"),
        (HEADER + "menuentry 'Linux {\n}\n", "No closing quotation"),
    ],
)
def test_configuration_that_cannot_boot_a_kernel_once_is_refused_with_the_file(tmp_path: Path, config: str, reason: str) -> None:
    with pytest.raises(grub.GrubError, match=reason) as refused:
        loader_of(tmp_path, config)
    assert f"{tmp_path}/boot/grub/grub.cfg" in str(refused.value)


@pytest.mark.parametrize("block", ["", "saved_entry=0\n", "# GRUB Environment Block\nsaved_entry=0\n"])
def test_environment_block_of_another_kind_is_refused_with_how_to_make_one(tmp_path: Path, block: str) -> None:
    loader_of(tmp_path, HEADER)
    (tmp_path / "boot/grub/grubenv").write_text(block)
    with pytest.raises(grub.GrubError, match="Make it anew: grub-editenv"):
        grub.read_boot_loader(tmp_path)


@pytest.mark.parametrize("name", ["prev_saved_entry", "initrdfail", "boot_counter"])
def test_boot_that_grub_decides_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(grub.GrubError, match=f"{name} is '1'.*unset {name}"):
        grub.check_undisturbed(loader_of(tmp_path, HEADER, **{name: "1"}))


@pytest.mark.parametrize(
    ("file_system", "abstraction", "written"),
    [("ext2", "", True), ("xfs", "", True), ("btrfs", "", False), ("ext2", "lvm", False), ("ext2", "diskfilter mdraid1x", False)],
)
def test_only_what_grub_can_write_to_forgets_a_choice(file_system: str, abstraction: str, *, written: bool) -> None:
    assert (grub.why_not_written(file_system, abstraction) is None) == written


WORD = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="'\\>"), min_size=1, max_size=12)


@given(title=WORD, identifier=WORD.filter(lambda text: not text.isdigit()), submenu=WORD.filter(lambda text: not text.isdigit()))
def test_whatever_an_entry_is_called_grub_finds_it_by_its_path(title: str, identifier: str, submenu: str) -> None:
    name = f"{identifier}-6.1.0-5"
    menu = f"submenu 'More' --id '{submenu}' {{\n\tmenuentry '{title}' --id '{name}' {{\n\t\tlinux\t/vmlinuz-6.1.0-5 ro\n\t}}\n}}\n"
    other = "menuentry 'Zero' --id 'zero' {\n\tlinux\t/vmlinuz-5.10.0-1 ro\n}\n"
    entries = grub.parse_menu(other + menu)
    found = next(entry for entry in entries if entry.release == "6.1.0-5")
    assert next_menu_release(parse_grub_config(HEADER + other + menu), {"saved_entry": found.spec}) == "6.1.0-5"


def test_entry_whose_name_would_have_to_be_written_in_two_ways_is_not_chosen(tmp_path: Path) -> None:
    menu = "menuentry 'Linux' --id '>6.1.0-5' {\n linux /vmlinuz-6.1.0-5 ro\n}\n"
    with pytest.raises(grub.GrubError, match="expected a menu entry"):
        loader_of(tmp_path, HEADER + menu).entry_for("6.1.0-5")


@given(st.text())
def test_any_text_is_a_menu_or_a_reason(text: str) -> None:
    for parse in (grub.parse_menu, grub.parse_environment):
        with contextlib.suppress(grub.GrubError):
            parse(text)


def test_last_setting_of_the_default_counts() -> None:
    assert grub.configured_default(["GRUB_DEFAULT=0\n#GRUB_DEFAULT=1\n", "GRUB_DEFAULT='saved'\n"]) == "saved"
    assert grub.configured_default(["#GRUB_DEFAULT=saved\n"]) is None


# apt 2.6.1 of Debian 12.
SIMULATION = """\
NOTE: This is only a simulation!
Reading package lists...
Remv linux-running [1]
Inst linux-conflicting (1 localhost [amd64])
Inst libc6 [2.36-9] (2.36-9+deb12u10 Debian:12.9/stable [amd64]) [libc-bin:amd64 ]
Conf linux-conflicting (1 localhost [amd64])
"""


def test_simulation_tells_installs_upgrades_and_removals() -> None:
    pin = packages.Pin
    changes = packages.parse_simulation(SIMULATION)
    assert changes.removals == (pin("linux-running", "1"),)
    assert changes.installs == (pin("linux-conflicting", "1"),)
    assert changes.upgrades == ((pin("libc6", "2.36-9+deb12u10"), "2.36-9"),)
    with pytest.raises(packages.PackageError, match="it would remove linux-running 1"):
        packages.check_changes(changes, [pin("linux-conflicting", "1")])


def test_upgrade_that_nobody_pinned_is_refused() -> None:
    pin = packages.Pin
    changes = packages.Changes(upgrades=((pin("libc6", "2"), "1"),))
    with pytest.raises(packages.PackageError, match="it would also install libc6 2, which nobody pinned"):
        packages.check_changes(changes, [pin("linux-image", "1")])
    packages.check_changes(changes, [pin("libc6", "2")])


def test_versions_that_archives_have_are_listed() -> None:
    text = " linux-image |    6.1.9-1 | http://deb.debian.org/debian bookworm/main amd64 Packages\n"
    text += " linux-image | 6.1.8-1+b1 | file:/srv ./ Packages\n"
    assert packages.parse_madison(text) == ("6.1.9-1", "6.1.8-1+b1")
    assert packages.parse_madison("N: Unable to locate package linux-image\n") == ()


@pytest.mark.parametrize(
    "text",
    [
        "zfs/2.1.11, 6.1.0-18-amd64, x86_64: installed\nnvidia/525.1: added\n",
        "zfs, 2.1.11, 6.1.0-18-amd64, x86_64: installed\nnvidia, 525.1: added\n",
    ],
    ids=["dkms 3", "dkms 2"],
)
def test_dkms_modules_without_a_build_are_listed_unless_the_headers_come_along(text: str) -> None:
    status = host.parse_dkms(text)
    assert status == [("zfs/2.1.11", "6.1.0-18-amd64", "installed"), ("nvidia/525.1", None, "added")]
    assert "nvidia/525.1, zfs/2.1.11. Expected linux-headers-7" in host.why_dkms(status, "7", "linux-headers-7", ["linux-image-7"])
    assert "no build for 6.1.0-18-amd64: nvidia/525.1." in host.why_dkms(status, "6.1.0-18-amd64", "linux-headers", [])
    assert host.why_dkms(status, "7", "linux-headers-7", ["linux-image-7", "linux-headers-7"]) is None


def test_secure_boot_is_on_off_or_not_known(tmp_path: Path) -> None:
    assert host.secure_boot(tmp_path / "efi") is False
    variable = tmp_path / "efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable.parent.mkdir(parents=True)
    assert host.secure_boot(tmp_path / "efi") is None
    for value in (0, 1):
        variable.write_bytes(struct.pack("<IB", 6, value))
        assert host.secure_boot(tmp_path / "efi") is bool(value)


@pytest.mark.parametrize(("name", "other"), [("systemd-boot 252", "systemd-boot 252"), ("GRUB 2.12", None)])
def test_boot_loader_that_names_itself_is_believed(tmp_path: Path, name: str, other: str | None) -> None:
    variable = tmp_path / "efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    variable.parent.mkdir()
    assert host.other_loader(tmp_path) is None
    variable.write_bytes(struct.pack("<I", 6) + (name + "\0").encode("utf-16-le"))
    assert host.other_loader(tmp_path) == other


@pytest.mark.parametrize(("magic", "directories"), [(0x20B, 112), (0x10B, 96)], ids=["64 bit", "32 bit"])
def test_signature_is_read_from_the_certificate_table(tmp_path: Path, magic: int, directories: int) -> None:
    image = bytearray(4096)
    image[:2], image[0x80:0x84] = b"MZ", b"PE\0\0"
    struct.pack_into("<I", image, 0x3C, 0x80)
    struct.pack_into("<H", image, 0x80 + 24, magic)
    (tmp_path / "vmlinuz").write_bytes(image)
    assert not host.is_signed(tmp_path / "vmlinuz")
    struct.pack_into("<II", image, 0x80 + 24 + directories + 32, 0x700000, 2048)
    (tmp_path / "vmlinuz").write_bytes(image)
    assert host.is_signed(tmp_path / "vmlinuz")
    (tmp_path / "vmlinuz").write_bytes(image[:0x90])
    assert not host.is_signed(tmp_path / "vmlinuz")


def inspected(**kernel: str | None) -> str:
    return json.dumps({"kernels": [{"release": "7", "state": "guarded", "reason": "it is", **kernel}]})


@pytest.mark.parametrize("state", ["guarded", "equivalent", "not_affected"])
def test_kernel_without_the_work_is_wanted(state: str) -> None:
    assert host.why_not_guarded(inspected(state=state), "7") is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (inspected(state="affected", reason="no test"), "kernel 7 is affected: no test"),
        (inspected(state="unknown", reason="no symbols"), "kernel 7 is unknown: no symbols"),
        (inspected(state="a word of tomorrow"), "is a word of tomorrow"),
        (inspected(release="8"), "it holds kernel 8, expected 7"),
        (inspected(release=None), "it holds kernel without a release"),
        ('{"kernels": []}', "found no kernel in it"),
        ('{"kernels": [{}]}', "no answer that can be read"),
        ("exitguard: command not found", "no answer that can be read"),
    ],
)
def test_anything_but_a_clear_answer_speaks_against_a_kernel(answer: str, reason: str) -> None:
    assert reason in host.why_not_guarded(answer, "7")


def test_one_affected_kernel_among_several_speaks_against_them() -> None:
    kernels = [json.loads(inspected(state=state))["kernels"][0] for state in ("guarded", "affected")]
    assert "is affected" in host.why_not_guarded(json.dumps({"kernels": kernels}), "7")


@pytest.mark.parametrize(
    ("text", "bad"), [("0\n", False), ("4096\n", False), ("128\n", True), ("16\n", True), ("4224\n", True), ("\n", True)]
)
def test_oops_and_machine_check_taint_and_foreign_modules_do_not(text: str, *, bad: bool) -> None:
    assert (host.why_tainted(text) is not None) == bad


def test_degraded_system_is_accepted_only_where_its_failed_units_are() -> None:
    assert host.why_system_is_not_up("running", [], []) is None
    assert host.why_system_is_not_up("degraded", ["a.service"], ["a.service"]) is None
    assert "failed units: b.service." in host.why_system_is_not_up("degraded", ["a.service", "b.service"], ["a.service"])
    for state in ("starting", "maintenance", ""):
        assert "expected running" in host.why_system_is_not_up(state, [], [])


def test_declared_arguments_and_defaults_of_the_role_are_the_same() -> None:
    declared = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in declared.items() if "default" in option} == defaults
    assert [name for name, option in declared.items() if option.get("required")] == ["kernel_guard_release"]
    assert all(option.get("description") for option in declared.values())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_module_is_python_3_8_and_imports_no_more_than_a_host_has(source: Path) -> None:
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    # A cloud's modules run on a control node, which has the SDK.
    allowed = {"libvirt"} | ({"openstack", "keystoneauth1"} if source.name == "exitguard_nova.py" else set())
    assert all(name.startswith("ansible.module_utils.") or name in allowed for name in others), others
