"""Where the fields lie that decide: kvm->arch.enable_pmu by two independent sources, and the PMU's bitmaps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from exitguard.facts.machine_code.image import Image, Symbol, base_name
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.machine_code.state import entry_state
from exitguard.facts.machine_code.values import ZERO, Argument, Constant, Load, Sum, Value, add, known, parts
from exitguard.facts.machine_code.walk import walk
from exitguard.facts.machine_code.ways import Walk
from exitguard.model.machine_code import FieldOffset

_VCPU, _KVM = Argument("vcpu"), Argument("kvm")
#: Copies the global to the field when a virtual machine is made (Linux 5.17 and later).
_INITIALIZER, _GLOBAL = "kvm_arch_init_vm", "enable_pmu"


@dataclass(frozen=True)
class EnablePmu:
    """kvm->arch.enable_pmu as the code reads it: through the vCPU's pointer to its virtual machine."""

    offset: FieldOffset
    load: Load

    @property
    def pointer(self) -> Value:
        """vcpu->kvm."""
        assert isinstance(self.load.address, Sum)  # noqa: S101 - the field never lies at 0, where the memory slots' lock is
        return self.load.address.base


def find_enable_pmu(image: Image, *, btf_base: bytes | None) -> EnablePmu | None:
    """The field, or None where neither source shows it. Raises Obstacle where the two disagree."""
    by_code, copied = _offset_by_code(image)
    by_btf = _offset_by_btf(image, btf_base, "kvm", ("arch", "enable_pmu"))
    if by_btf is not None and not copied and by_code != by_btf:
        by_code = None  # a byte that depends on the global is a witness, and not one against the field's own name
    if by_code is not None and by_btf is not None and by_code != by_btf:
        raise Obstacle(
            f"kvm->arch.enable_pmu lies at {by_btf:#x} by BTF and at {by_code:#x} by {_INITIALIZER}: expected the same from both"
        )
    offset = by_btf if by_btf is not None else by_code
    if offset is None or offset <= 0:
        return None
    said: tuple[Literal["BTF", "code"], ...] = ("BTF", "code") if by_btf == by_code else ("BTF",) if by_btf is not None else ("code",)
    pointer_at = _offset_by_btf(image, btf_base, "kvm_vcpu", ("kvm",)) or 0  # the first field of struct kvm_vcpu in every version
    load = Load(add(Load(add(_VCPU, pointer_at), 8), offset), 1)
    return EnablePmu(FieldOffset(offset=offset, sources=said), load)


def pmu_field_names(image: Image, *, btf_base: bytes | None) -> Mapping[int, str]:
    """The PMU's bitmaps by their offset in struct kvm_vcpu, as BTF names them; empty where there is no BTF."""
    names = ("pmc_counting_instructions", "all_valid_pmc_idx")
    offsets = {_offset_by_btf(image, btf_base, "kvm_vcpu", ("arch", "pmu", name)): name for name in names}
    return {offset: name for offset, name in offsets.items() if offset is not None}


def _offset_by_btf(image: Image, btf_base: bytes | None, structure: str, fields: tuple[str, ...]) -> int | None:
    if image.btf is None:
        return None
    from exitguard.facts.machine_code.btf import field_offset, needs_base

    base = image.btf_base or btf_base
    try:
        if base is None and needs_base(image.btf):
            return None
        return field_offset(image.btf, structure, fields, base=base)
    except Obstacle:  # a base that does not fit, or names only the size of a structure: one source less
        return None


def _offset_by_code(image: Image) -> tuple[int | None, bool]:
    """Where kvm_arch_init_vm() stores the global, and whether it is copied as it is; None where it does not, or in several places.

    Until 6.18 the byte is copied. Since then it is `enable_pmu && !has_protected_state`: the one byte that is stored as 0 where the
    global is 0, and as something else where it is 1.
    """
    globals_ = image.addresses_of(_GLOBAL)
    functions = image.functions(_INITIALIZER)
    if len(globals_) != 1 or len(functions) != 1:
        return None, False
    read = Load(Constant(next(iter(globals_))), 1)
    try:
        plain = _walk(image, functions[0], {})
        copied = _bytes_of_kvm(plain, lambda value: value == read)
        if copied or _is_merged(plain, read):
            return (copied.pop() if len(copied) == 1 else None), True
        zero, one = (_walk(image, functions[0], {read: value}) for value in (0, 1))
        derived = _bytes_of_kvm(zero, lambda value: value == ZERO) - _bytes_of_kvm(one, lambda value: value == ZERO)
        derived &= _bytes_of_kvm(one, lambda _: True)  # stored by both, whatever the global is
    except Obstacle:
        return None, False
    return (derived.pop() if len(derived) == 1 else None), False


def _is_merged(seen: Walk, read: Load) -> bool:
    """Whether the copy may be part of a wider store, with neighbours."""
    stores = [store for store in seen.stores.values() if isinstance(store.address, Sum) and store.address.base == _KVM]
    # Compilers put two bytes into one word; its value is then no longer followed.
    return any(store.size > 1 and (read in parts(store.value) or (store.size == 2 and not known(store.value))) for store in stores)  # noqa: PLR2004


def _walk(image: Image, function: Symbol, assumed: Mapping[Load, int]) -> Walk:
    def stays(address: int) -> bool:
        there = image.function_at(address)
        return there is not None and base_name(there.name) == base_name(function.name)

    return walk(image, function.address, entry_state(_KVM), assumed=assumed, stays=stays)


def _bytes_of_kvm(seen: Walk, wanted: Callable[[Value], bool]) -> set[int]:
    """The offsets in struct kvm at which a byte of a wanted value is stored, and of no other."""
    stored: dict[int, set[bool]] = {}
    for store in seen.stores.values():
        if store.size == 1 and isinstance(store.address, Sum) and store.address.base == _KVM:
            stored.setdefault(store.address.offset, set()).add(wanted(store.value))
    return {offset for offset, answers in stored.items() if answers == {True}}
