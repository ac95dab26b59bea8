"""A QEMU command line, read for what decides the guest PMU: the truth about a running domain. Pure.

Properties: target/i386/cpu.c (`pmu`, default off for named models, on for host and max); `+pmu` and `-pmu` are the legacy
spellings: they win over `pmu=`, and `-pmu` wins over `+pmu`, in any order (x86_cpu_expand_features in QEMU's source).
"""

from dataclasses import dataclass
from uuid import UUID

from exitguard.model.domain import CpuArgument
from exitguard.model.pmu import PmuElement
from exitguard.model.record import Observed, seen, unseen

#: qapi_bool_parse(); anything else but on, yes, true and y keeps QEMU from starting.
_OFF = ("off", "no", "false", "n")
SOURCE = "QEMU command line"

#: Options of qemu-system-x86_64 that take no value (qemu-options.hx up to 11.0, entries without HAS_ARG, removed ones included).
_WITHOUT_VALUE = frozenset(
    """
    -h -help -version -enable-kvm -nodefaults -nographic -S -s -no-reboot -no-shutdown -no-user-config -nodefconfig -daemonize
    -snapshot -usb -no-acpi -no-hpet -no-fd-bootchk -preconfig -only-migratable -full-screen -win2k-hack -rtc-td-hack -xen-attach
    -xen-domid-restrict -async-teardown
    -enable-sync-profile -curses -mem-prealloc -singlestep -enable-fips -alt-grab -ctrl-grab -no-frame -no-quit -sdl -portrait
    -audio-help -perfmap -jitdump -tdf -semihosting -old-param -no-kvm -no-kvm-irqchip -no-kvm-pit -no-kvm-pit-reinjection -localtime
    """.split()  # noqa: SIM905 - three lines to read, not sixty
)


@dataclass(frozen=True)
class QemuCommandLine:
    """What one QEMU was started with."""

    uuid: str | None
    cpu: Observed[CpuArgument]
    accelerator: Observed[str]
    incoming: bool


def parse(argv: tuple[str, ...]) -> QemuCommandLine:
    """What `argv` (the whole command line, argv[0] included) says. Never raises: what cannot be told has a reason."""
    options, stray = _split(argv[1:])
    values: dict[str, list[str]] = {}
    for option, value in options:
        values.setdefault(option, []).append(value)
    behind = [f"{option} {value}"[:200] for option, value in options if _may_change_pmu(option, value)]
    cpu: Observed[CpuArgument]
    if stray is not None:
        # Out of step, a missed -cpu would look like none, and a tenant's text like an option: say nothing instead.
        cpu = unseen(SOURCE, _not_understood(stray))
    elif behind:
        cpu = unseen(SOURCE, f"{behind[0]} can change the PMU behind -cpu")
    else:
        # The last -cpu wins; without one QEMU takes its default model, which is a named one.
        cpu = seen(SOURCE, read_cpu_argument(values.get("-cpu", [""])[-1]))
    return QemuCommandLine(
        uuid=_uuid(values.get("-uuid", [""])[-1]),
        cpu=cpu,
        accelerator=_accelerator(values, stray),
        incoming="-incoming" in values,
    )


def _split(words: tuple[str, ...]) -> tuple[list[tuple[str, str]], int | None]:
    """Options with their values, and the position (argv[0] is 0) of the first word that stands where an option was expected."""
    options: list[tuple[str, str]] = []
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("-") or word == "-":
            return options, position + 1
        option = "-" + word.lstrip("-")
        if option in _WITHOUT_VALUE:
            options.append((option, ""))
            position += 1
        else:
            options.append((option, words[position + 1] if position + 1 < len(words) else ""))
            position += 2
    return options, None


def _accelerator(values: dict[str, list[str]], stray: int | None) -> Observed[str]:
    if stray is not None:
        return unseen(SOURCE, _not_understood(stray))
    named = [_named_accelerator(value) for value in values.get("-accel", ())]
    for machine in values.get("-machine", []) + values.get("-M", []):
        named += [name for part in machine.split(",") if part.startswith("accel=") for name in part[6:].split(":")]
    if "-enable-kvm" in values:
        named.append("kvm")
    # QEMU tries the named ones in turn; libvirt names exactly one.
    return seen(SOURCE, named[0]) if len(set(named)) == 1 else unseen(SOURCE, "the command line names no accelerator, or several")


def _may_change_pmu(option: str, value: str) -> bool:
    """Whether an option other than -cpu can decide the PMU: a property of the CPU set elsewhere, or a file with options."""
    match option:
        case "-global":
            return "pmu" in value
        case "-set":
            return ".pmu=" in value
        case "-device":
            return value.partition(",")[0].endswith("-cpu") and "pmu" in value
        case _:
            return option == "-readconfig"


def _named_accelerator(value: str) -> str:
    """`kvm,kernel-irqchip=on` and `kernel-irqchip=on,accel=kvm` are the same: `accel` is the key that a first bare word stands for."""
    parts = value.split(",")
    return next((part.removeprefix("accel=") for part in parts if part.startswith("accel=")), parts[0])


def _not_understood(position: int) -> str:
    """Without the words themselves: they may hold a tenant's text, a secret, or a number that changes at every start."""
    return f"not understood from argument {position} on"


def read_cpu_argument(text: str) -> CpuArgument:
    """`host,migratable=on,pmu=off` as a model and its pmu property; the last `pmu=` wins, `+pmu` over it, `-pmu` over both."""
    model, *features = text.split(",")
    plain = PmuElement.ABSENT
    legacy = set()
    for feature in features:
        name, _, value = feature.strip().partition("=")
        if name == "pmu":
            plain = PmuElement.OFF if value in _OFF else PmuElement.ON
        elif name in ("+pmu", "-pmu"):
            legacy.add(name)
    if "-pmu" in legacy:
        plain = PmuElement.OFF
    elif "+pmu" in legacy:
        plain = PmuElement.ON
    return CpuArgument(model=model.strip(), pmu=plain)


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None
