import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.qemu_command_line import _WITHOUT_VALUE, QemuCommandLine, parse, read_cpu_argument
from exitguard.model.domain import CpuArgument
from exitguard.model.pmu import PmuElement

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="no qemu-system-x86_64 on this machine")
RECORDED = [
    tuple(case.read_text().rstrip("\0").split("\0")) for case in sorted(Path(__file__).parent.glob("qemu_command_line/libvirt-*/input"))
]


def read(*words: str) -> QemuCommandLine:
    return parse(("qemu-system-x86_64", *words))


def cpu(*words: str) -> CpuArgument:
    return read(*words).cpu.get()


# -cpu


@pytest.mark.parametrize(
    ("text", "pmu"),
    [
        ("host", PmuElement.ABSENT),
        ("host,migratable=on", PmuElement.ABSENT),
        ("host,pmu=on", PmuElement.ON),
        ("host,pmu=yes", PmuElement.ON),
        ("host,pmu", PmuElement.ON),
        ("host,+pmu", PmuElement.ON),
        ("host,pmu=off", PmuElement.OFF),
        ("host,pmu=no", PmuElement.OFF),
        ("host,pmu=false", PmuElement.OFF),
        ("host,pmu=n", PmuElement.OFF),
        ("host,-pmu", PmuElement.OFF),
        ("host,pmu=on,pmu=off", PmuElement.OFF),
        ("host,pmu=off,pmu=on", PmuElement.ON),
        ("host,+pmu,pmu=off", PmuElement.ON),
        ("host,-pmu,pmu=on", PmuElement.OFF),
        ("host,-pmu,+pmu", PmuElement.OFF),
        ("host,+pmu,-pmu", PmuElement.OFF),
        ("host,lbr-fmt=pmu,hv-vendor-id=pmu=off", PmuElement.ABSENT),
        ("host,xpmu=off,pmux=off,-pmux", PmuElement.ABSENT),
    ],
)
def test_pmu_property_of_cpu(text: str, pmu: PmuElement) -> None:
    assert read_cpu_argument(text) == CpuArgument(model="host", pmu=pmu)


def test_last_cpu_wins() -> None:
    assert cpu("-cpu", "host,pmu=off", "-m", "16", "--cpu", "EPYC") == CpuArgument(model="EPYC", pmu=PmuElement.ABSENT)


def test_two_dashes_are_one() -> None:
    assert cpu("--enable-kvm", "--cpu", "max,pmu=off") == CpuArgument(model="max", pmu=PmuElement.OFF)


def test_without_cpu_the_default_model_is_left_open() -> None:
    assert cpu("-m", "16") == CpuArgument(model="", pmu=PmuElement.ABSENT)


def test_cpu_without_its_value_is_the_default() -> None:
    assert cpu("-m", "16", "-cpu") == CpuArgument(model="", pmu=PmuElement.ABSENT)


@pytest.mark.parametrize(
    ("words", "blamed"),
    [
        (("-global", "host-x86_64-cpu.pmu=on"), "-global host-x86_64-cpu.pmu=on"),
        (("-global", "driver=x,property=pmu,value=on"), "-global driver=x,property=pmu,value=on"),
        (("-readconfig", "/etc/vm.conf"), "-readconfig /etc/vm.conf"),
        (("-set", "device.cpu0.pmu=on"), "-set device.cpu0.pmu=on"),
        (("-device", "host-x86_64-cpu,pmu=on,core-id=1"), "-device host-x86_64-cpu,pmu=on,core-id=1"),
    ],
)
def test_what_can_change_the_pmu_behind_cpu_makes_it_unseen(words: tuple[str, ...], blamed: str) -> None:
    line = read("-accel", "kvm", "-cpu", "host,pmu=off", *words)
    assert line.cpu.reason == f"{blamed} can change the PMU behind -cpu"
    assert line.accelerator.value == "kvm"


@pytest.mark.parametrize("value", ["kvm", "kvm,kernel-irqchip=on", "kernel-irqchip=on,accel=kvm", "accel=kvm"])
def test_accelerator_is_found_however_it_is_spelt(value: str) -> None:
    assert read("-accel", value).accelerator.value == "kvm"


def test_global_of_something_else_is_harmless() -> None:
    assert cpu("-global", "ICH9-LPC.noreboot=off", "-cpu", "host,pmu=off").pmu is PmuElement.OFF


# Text that looks like an option


@pytest.mark.parametrize("option", ["-append", "-name", "-fw_cfg", "-smbios", "-device", "-kernel"])
@pytest.mark.parametrize("value", ["-cpu", "-cpu host,pmu=off", "--cpu", "-global pmu=on", "-readconfig", "-incoming"])
def test_value_that_looks_like_an_option_is_a_value(option: str, value: str) -> None:
    line = read("-cpu", "host,pmu=on", option, value, "-accel", "kvm")
    assert line.cpu.get() == CpuArgument(model="host", pmu=PmuElement.ON)
    assert (line.accelerator.value, line.incoming) == ("kvm", False)


@pytest.mark.parametrize("option", sorted(_WITHOUT_VALUE))
def test_option_without_a_value_keeps_the_reading_in_step(option: str) -> None:
    assert cpu(option, "-cpu", "host,pmu=off").pmu is PmuElement.OFF


def test_stray_word_is_not_repeated_since_it_may_be_a_secret() -> None:
    line = read("-S", "io.systemd.credential:passwd=hunter2")
    assert "hunter2" not in (line.cpu.reason or "") + (line.accelerator.reason or "")


@pytest.mark.parametrize("stray", ["disk.img", "-", "", "host,pmu=off"])
def test_stray_word_makes_everything_behind_it_unseen(stray: str) -> None:
    line = read("-cpu", "host,pmu=off", "-S", stray, "-cpu", "host")
    assert line.cpu.reason == "not understood from argument 4 on"
    assert line.accelerator.reason == line.cpu.reason


def test_stray_word_is_cut_in_the_reason() -> None:
    assert len(read("x" * 100_000).cpu.reason or "") < 200


@given(st.sampled_from(RECORDED), st.text(max_size=40), st.sampled_from(["-append", "-fw_cfg", "-name"]))
def test_no_value_of_another_option_changes_what_is_said_of_the_cpu(argv: tuple[str, ...], value: str, option: str) -> None:
    plain = parse(argv)
    assert parse((*argv, option, value)) == plain
    assert parse((argv[0], option, value, *argv[1:])) == plain


# Everything else


@pytest.mark.parametrize(
    ("words", "accelerator"),
    [
        (("-accel", "kvm"), "kvm"),
        (("-accel", "kvm,kernel-irqchip=split"), "kvm"),
        (("-machine", "pc,accel=kvm,usb=off"), "kvm"),
        (("-M", "q35,accel=tcg"), "tcg"),
        (("-enable-kvm",), "kvm"),
        (("-enable-kvm", "-accel", "kvm"), "kvm"),
    ],
)
def test_one_accelerator_is_named(words: tuple[str, ...], accelerator: str) -> None:
    assert read(*words).accelerator.value == accelerator


@pytest.mark.parametrize("words", [(), ("-machine", "pc"), ("-accel", "kvm", "-accel", "tcg"), ("-machine", "pc,accel=kvm:tcg")])
def test_several_accelerators_or_none_leave_it_open(words: tuple[str, ...]) -> None:
    assert read(*words).accelerator.reason == "the command line names no accelerator, or several"


def test_incoming_run_is_told() -> None:
    assert read("-incoming", "defer").incoming
    assert not read("-name", "-incoming").incoming


@pytest.mark.parametrize(
    ("words", "uuid"),
    [
        (("-uuid", "0B6F5A4E-57C4-4A06-8A3E-0D2D2B1F1004"), "0b6f5a4e-57c4-4a06-8a3e-0d2d2b1f1004"),
        (("-uuid", "not one"), None),
        (("-uuid",), None),
        ((), None),
    ],
)
def test_uuid_is_read_in_its_usual_form(words: tuple[str, ...], uuid: str | None) -> None:
    assert read(*words).uuid == uuid


word = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["-cpu", "--cpu", "-global", "-readconfig", "-accel", "-machine", "-uuid", "-S", "-incoming", "host,pmu=off", "pc,accel=kvm"]
    ),
)


@given(st.lists(word, max_size=30))
def test_no_command_line_raises(argv: list[str]) -> None:
    line = parse(tuple(argv))
    assert line.cpu.known != (line.cpu.reason is not None)


# Against the real program


def pmu_in_force(cpu_text: str) -> tuple[str, bool]:
    """The CPU model that a real, paused QEMU has made of `-cpu`, and its pmu property."""
    questions = [{"execute": "qmp_capabilities"}]
    questions += [
        {"execute": "qom-get", "arguments": {"path": "/machine/unattached/device[0]", "property": name}} for name in ("type", "pmu")
    ]
    questions += [{"execute": "quit"}]
    command = [str(QEMU), "-accel", "tcg", "-machine", "pc", "-m", "16", "-display", "none", "-nodefaults", "-S", "-qmp", "stdio"]
    answered = subprocess.run(
        [*command, *(["-cpu", cpu_text] if cpu_text else [])],
        input="\n".join(json.dumps(question) for question in questions),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    returned = [answer["return"] for answer in map(json.loads, answered.splitlines()) if "return" in answer]
    return returned[1].removesuffix("-x86_64-cpu"), returned[2]


@needs_qemu
@pytest.mark.integration
@pytest.mark.parametrize("model", ["max", "qemu64"])
@pytest.mark.parametrize(
    "properties",
    [
        ",pmu=on",
        ",pmu=yes",
        ",pmu=true",
        ",pmu=y",
        ",pmu",
        ",+pmu",
        ",pmu=off",
        ",pmu=no",
        ",pmu=false",
        ",pmu=n",
        ",-pmu",
        ",+pmu,-pmu",
        ",-pmu,+pmu",
        ",+pmu,pmu=off",
        ",-pmu,pmu=on",
        ",pmu=on,pmu=off",
        ",pmu=off,pmu=on",
    ],
)
def test_pmu_is_read_as_a_real_qemu_reads_it(model: str, properties: str) -> None:
    said = read_cpu_argument(model + properties)
    assert said.pmu is not PmuElement.ABSENT
    assert pmu_in_force(model + properties) == (said.model, said.pmu is PmuElement.ON)


@needs_qemu
@pytest.mark.integration
@pytest.mark.parametrize(("model", "pmu"), [("max", True), ("qemu64", False), ("EPYC", False), ("", False)])
def test_pmu_of_a_real_qemu_is_on_by_default_for_max_and_off_for_named_models(model: str, *, pmu: bool) -> None:
    assert pmu_in_force(model) == (model or "qemu64", pmu)


def takes_value(option: str) -> bool | None:
    """Whether a real QEMU takes the word behind `option` for its value; None where it does not know the option. Nothing starts."""
    command = [str(QEMU), option, "-behind-it", "-behind-that"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    blamed = re.search(r"(-[\w-]+): invalid option", refused.stderr)
    assert blamed, refused.stderr
    return {option: None, "-behind-it": False, "-behind-that": True}[blamed[1]]


@needs_qemu
@pytest.mark.integration
def test_options_without_a_value_are_those_of_a_real_qemu() -> None:
    shown = subprocess.run([str(QEMU), "-help"], capture_output=True, text=True, timeout=60, check=True).stdout
    names = re.findall(r"^--?([\w-]+)(?:(?: or |/)-([\w-]+))?", shown, flags=re.MULTILINE)
    listed = {f"-{name}" for pair in names for name in pair if name}
    assert {"-S", "-help", "-hdb", "-cpu", "-preconfig"} <= listed
    answers = {option: takes_value(option) for option in listed | _WITHOUT_VALUE}
    assert {option for option, answer in answers.items() if answer is False} - _WITHOUT_VALUE == set()
    assert {option for option, answer in answers.items() if answer is True} & _WITHOUT_VALUE == set()
