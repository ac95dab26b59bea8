"""What is fuzzed: each target takes bytes, and may end in nothing but a result or an Obstacle."""

import io
from collections.abc import Callable, Mapping
from contextlib import suppress

from exitguard.audit.kernel import machine_code_statement
from exitguard.facts.machine_code.btf import field_offset, needs_base
from exitguard.facts.machine_code.container import read_elf
from exitguard.facts.machine_code.image import load_image
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.skip import read_skip

_LIMIT_BYTES = 8 << 20
_FIELDS = (("kvm", ("arch", "enable_pmu")), ("kvm_vcpu", ("kvm",)), ("kvm_vcpu", ("arch", "pmu", "pmc_counting_instructions")))


def image(data: bytes) -> None:
    """An ELF file, read and judged."""
    with suppress(Obstacle):
        machine_code_statement(read_skip(load_image(data, path="fuzzed")))


def container(data: bytes) -> None:
    """A compressed module or kernel."""
    with suppress(Obstacle):
        read_elf(io.BytesIO(data), name="fuzzed", limit_bytes=_LIMIT_BYTES)


def btf(data: bytes) -> None:
    """BTF by itself, and split over a base that is fuzzed too: the first two bytes say where one ends and the other begins."""
    split = int.from_bytes(data[:2], "little")
    base, module = data[2 : 2 + split], data[2 + split :]
    for structure, fields in _FIELDS:
        with suppress(Obstacle):
            needs_base(data[2:])
            field_offset(data[2:], structure, fields)
        with suppress(Obstacle):
            field_offset(module, structure, fields, base=base)


TARGETS: Mapping[str, Callable[[bytes], None]] = {"image": image, "container": container, "btf": btf}
