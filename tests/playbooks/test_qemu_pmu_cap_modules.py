"""What qemu_pmu_cap decides by: recorded words of apt, dnf and QEMU, and real programs in a file tree."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

RECORDED = Path(__file__).parent / "qemu_packages"
MODULE_UTILS = Path(__file__).resolve().parents[2] / "playbooks" / "module_utils"
MESSAGE = b"Failed to set KVM_PMU_CAP_DISABLE"


def load(name: str) -> ModuleType:
    """One of our module_utils, by the name under which modules import it."""
    full_name = f"ansible.module_utils.{name}"
    if full_name in sys.modules:
        return sys.modules[full_name]
    specification = importlib.util.spec_from_file_location(full_name, MODULE_UTILS / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[full_name] = module
    specification.loader.exec_module(module)
    return module


load("exitguard_host_step")
packages = load("exitguard_qemu_packages")
program = load("exitguard_qemu_program")
guests = load("exitguard_guests")


def recorded(case: str) -> str:
    return (RECORDED / case / "input").read_text()


def pins(*texts: str) -> list[Any]:
    return [packages.Pin(*text.split(" ")) for text in texts]


def test_machine_types_of_a_real_qemu_are_read_with_aliases_and_deprecated_ones() -> None:
    types = program.parse_machine_help(recorded("machine-help-7.2.22"))
    assert {"pc", "q35", "pc-i440fx-7.2", "pc-q35-4.0.1", "pc-i440fx-2.1", "microvm"} <= types.names
    assert len(types.names) == len(recorded("machine-help-7.2.22").splitlines()) - 1
    assert types.deprecated == {"pc-i440fx-1.4", "pc-i440fx-1.5", "pc-i440fx-1.6", "pc-i440fx-1.7"}


@pytest.mark.parametrize("text", ["", "qemu: bad option\n", "Supported machines are:\n\n"])
def test_output_without_machine_types_is_an_error_and_not_an_empty_list(text: str) -> None:
    with pytest.raises(program.ProgramError, match="listed no machine types"):
        program.parse_machine_help(text)


def test_machine_types_in_use_are_those_of_x86_guests_and_of_the_plan() -> None:
    found = [
        ("web", [("x86_64", "pc-i440fx-2.1"), ("x86_64", "q35")]),
        ("db", [("i686", "pc-i440fx-2.1")]),
        ("arm", [("aarch64", "virt")]),
    ]
    in_use = program.machines_in_use(found, ["pc-q35-3.1", "q35"])
    assert in_use == {"pc-i440fx-2.1": ("db", "web"), "pc-q35-3.1": ("the plan",), "q35": ("web",)}
    offered = program.parse_machine_help(recorded("machine-help-7.2.22").replace("pc-i440fx-2.1 ", "pc-i440fx-x.x "))
    assert program.missing_machines(in_use, offered) == {"pc-i440fx-2.1": ("db", "web")}


def test_guest_counts_with_the_machine_types_of_its_definition_run_and_saved_run() -> None:
    texts = [
        (kind, f"<domain><name>web</name><os><type arch='x86_64' machine='{machine}'>hvm</type></os></domain>")
        for kind, machine in (("managed save", "pc-i440fx-2.1"), ("run", "pc-q35-7.1"), ("definition", "pc-q35-7.2"))
    ]
    guest = guests.parse_guest("0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004", True, texts)
    assert guest.machines == (("x86_64", "pc-i440fx-2.1"), ("x86_64", "pc-q35-7.1"), ("x86_64", "pc-q35-7.2"))


@pytest.mark.parametrize(
    "text", ["<domain", "<pool/>", "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>"], ids=["torn", "pool", "entities"]
)
def test_guest_that_cannot_be_read_is_an_error_and_not_a_guest_without_wishes(text: str) -> None:
    with pytest.raises(guests.GuestsUnknownError, match="0b6f5a4e"):
        guests.parse_guest("0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004", True, [("run", text)])


@pytest.mark.parametrize(
    ("argument", "asks"),
    [
        ("host,pmu=on", True),
        ("host,+pmu", True),
        ("-readconfig", True),
        ("host,pmu=off", False),
        ("host,-pmu", False),
        ("q35,vmport=on", False),
    ],
)
def test_arguments_past_libvirt_ask_for_the_pmu_as_well(argument: str, asks: bool) -> None:  # noqa: FBT001 - what is expected
    text = (
        "<domain xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><name>web</name><features><pmu state='off'/></features>"
        f"<q:commandline><q:arg value='-cpu'/><q:arg value='{argument}'/></q:commandline></domain>"
    )
    guest = guests.parse_guest("0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004", False, [("definition", text)])
    assert bool(guest.asks_for_pmu) == asks


@pytest.mark.parametrize("offset", [0, (1 << 20) - 5, (1 << 20) - len(MESSAGE) + 1, 3 << 20])
def test_message_is_found_wherever_it_lies(tmp_path: Path, offset: int) -> None:
    (tmp_path / "qemu").write_bytes(b"x" * offset + MESSAGE + b"\0")
    assert program.has_capability_string(tmp_path / "qemu")
    (tmp_path / "qemu").write_bytes(b"x" * offset + MESSAGE[:-1] + b"\0")
    assert not program.has_capability_string(tmp_path / "qemu")


def test_link_that_leads_out_of_the_packages_is_no_program_of_theirs(tmp_path: Path) -> None:
    for folder in ("usr/bin", "usr/libexec"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    (tmp_path / "tree/usr/libexec/qemu-kvm").write_text("")
    (tmp_path / "tree/usr/bin/qemu-kvm").symlink_to("../libexec/qemu-kvm")
    (tmp_path / "tree/usr/bin/qemu-system-x86_64").symlink_to("/bin/sh")
    assert program.find_programs(tmp_path / "tree") == ("usr/libexec/qemu-kvm", "usr/bin/qemu-kvm")


@pytest.fixture
def tree() -> Any:
    """A tree that an ordinary user may look into, with a place for a program."""
    if os.geteuid() != 0:
        pytest.skip("to run a program as another user takes root")
    folder = Path("/tmp") / f"exitguard-qemu-{os.getpid()}"  # noqa: S108 - pytest's own is closed to other users
    (folder / "usr/bin").mkdir(parents=True)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def put(tree: Path, script: str) -> None:
    (tree / program.PROGRAMS[0]).write_text(f"#!/bin/sh\n{script}\n")
    (tree / program.PROGRAMS[0]).chmod(0o755)


def test_real_qemu_lists_its_machine_types_from_where_it_was_unpacked(tree: Path) -> None:
    installed = next((path for path in (Path("/usr/bin/qemu-system-x86_64"), Path("/usr/libexec/qemu-kvm")) if path.exists()), None)
    if installed is None:
        pytest.skip("qemu-system-x86_64 is not installed: `make test` installs what it can")
    shutil.copy(installed, tree / program.PROGRAMS[0])
    assert {"pc", "q35"} <= program.read_machine_types(tree, program.PROGRAMS[0], 65534, 65534).names


def test_program_runs_without_privileges_files_or_the_callers_environment(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of-root")
    put(
        tree,
        "test $(id -u)-$(id -g)-$(id -G) = 65534-65534-65534 && test -z $SECRET && grep -q '^NoNewPrivs:.1' /proc/self/status"
        f" && echo Supported machines are: && echo 'pc   PC' && echo {tree}; echo $LD_LIBRARY_PATH",
    )
    assert "pc" in program.read_machine_types(tree, program.PROGRAMS[0], 65534, 65534).names


def test_program_that_hangs_is_ended_with_all_that_it_started(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_RUN_SECONDS", 1)
    put(tree, f"sleep 4711 & echo $! >&2; trap '' TERM; exec sleep 47{os.getpid()}")
    with pytest.raises(program.ProgramError, match="did not end within 1 seconds"):
        program.read_machine_types(tree, program.PROGRAMS[0], 65534, 65534)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep 47{os.getpid()}" not in running


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "/x/qemu-system-x86_64: error while loading shared libraries: libfdt.so.1: cannot open shared object file: No such file",
            "it needs libfdt.so.1, which neither this host nor the pinned packages have",
        ),
        (
            "/x/qemu-system-x86_64: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /x/qemu-system-x86_64)",
            "it needs libc.so.6 with GLIBC_2.38, which neither this host nor the pinned packages have",
        ),
        ("Illegal instruction", "exit code 7: Illegal instruction"),
    ],
)
def test_what_keeps_a_program_from_running_is_named(said: str, reason: str) -> None:
    assert program.why_not_running(said, 7).startswith(reason)


NEW, DATA = "qemu-kvm-core 17:9.1.0-15.el9", "seabios 1.16-1.el9"


@pytest.mark.parametrize(
    ("case", "arrivals", "removals", "downgrades"),
    [
        ("dnf-upgrade", [NEW, DATA], [], []),
        ("dnf-wrapped-name", ["qemu-kvm-hopelessly-long-name-of-a-package-in-it 17:9.1.0-15.el9", NEW, DATA], [], []),
        ("dnf-removal", [NEW, DATA], ["qemu-kvm-ui 17:9.0.0-10.el9"], []),
        ("dnf-replacement", ["qemu-new 9.1.0-1.el9"], ["qemu-old 1-1.el9"], []),
        ("dnf-downgrade", [], [], ["qemu-kvm-core 17:9.0.0-10.el9", "seabios 1.15-1.el9"]),
        ("apt-upgrade", ["qemu-system-data 1:11.1", "qemu-system-x86 1:11.1"], [], []),
        ("apt-removal", ["qemu-system-data 1:11.1", "qemu-system-x86 1:11.1"], ["qemu-gui 1:7.2"], []),
    ],
)
def test_what_an_installation_would_do_is_read_to_its_end(
    case: str, arrivals: list[str], removals: list[str], downgrades: list[str]
) -> None:
    parse = packages.parse_transaction if case.startswith("dnf") else packages.parse_simulation
    changes = parse(recorded(case))
    assert [sorted(map(str, part)) for part in (changes.arrivals, changes.removals, changes.downgrades)] == [
        sorted(arrivals),
        removals,
        downgrades,
    ]


@pytest.mark.parametrize("case", [folder.name for folder in RECORDED.glob("dnf-*")])
def test_table_of_dnf_that_is_read_in_part_is_an_error(case: str) -> None:
    text = "".join(line for line in recorded(case).splitlines(keepends=True) if "x86_64" not in line)
    with pytest.raises(packages.PackageError, match="what dnf would do cannot be told: of "):
        packages.parse_transaction(text)


def test_versions_that_archives_have_are_read() -> None:
    assert packages.parse_madison(recorded("apt-madison")) == ("1:11.1", "1:7.2")
    assert packages.parse_madison("qemu | 1:9 | http://deb.example.org bookworm/main Sources\n") == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"removals": pins("qemu-gui 1:7.2")}, "would remove qemu-gui 1:7.2"),
        ({"downgrades": pins("qemu 1:6.0")}, "would go back to qemu 1:6.0"),
        ({"arrivals": pins("qemu 1:11.1", "libvirt0 10.0")}, "would also install libvirt0 10.0, which nobody pinned"),
        ({"arrivals": ()}, "would not install qemu 1:11.1"),
        ({"arrivals": pins("qemu 1:12")}, "would also install qemu 1:12"),
        ({"arrivals": pins("qemu 1:11.1")}, None),
    ],
)
def test_nothing_beside_the_pins_is_accepted(changes: dict[str, Any], reason: str | None) -> None:
    wanted = packages.Changes(**changes)
    if reason is None:
        packages.refuse_more_than_pinned(wanted, pins("qemu 1:11.1"))
        return
    with pytest.raises(packages.PackageError, match=reason):
        packages.refuse_more_than_pinned(wanted, pins("qemu 1:11.1"))
