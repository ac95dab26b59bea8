"""Live patches of the running kernel, and whether they replace the code that a kernel is judged by.

From /sys/kernel/livepatch (Documentation/ABI/testing/sysfs-kernel-livepatch): `<patch>/enabled`, `<patch>/transition`, and for
every replaced function a folder `<patch>/<object>/<function>,<position>`.
"""

from collections.abc import Iterable

from exitguard.facts.tree import HostTree, one_line, unseen_like
from exitguard.model.host import LivePatch
from exitguard.model.record import Observed, seen, unseen

_FOLDER = "/sys/kernel/livepatch"
#: The function that may hold the guard, and the two that it calls for the PMU: whichever is replaced, what runs is not what was judged.
_FUNCTIONS = frozenset({"kvm_skip_emulated_instruction", "kvm_pmu_trigger_event", "kvm_pmu_instruction_retired"})
#: KVM is an object of its own as a module, and part of the kernel where it is built in.
_OBJECTS = ("kvm", "vmlinux")
_MAX_PATCHES = 256
_SWITCH = {"0": False, "1": True}


def read_live_patches(tree: HostTree) -> Observed[tuple[LivePatch, ...]]:
    """Every loaded live patch; none where the kernel cannot be live-patched."""
    kernel = tree.names("/sys/kernel")
    if kernel.value is None:
        return unseen_like(kernel)
    if not kernel.value:
        return unseen("/sys/kernel", "empty: sysfs is not mounted there")
    if "livepatch" not in kernel.value:
        return seen(_FOLDER, ())
    names = tree.names(_FOLDER)
    if names.value is None:
        return unseen_like(names)
    if len(names.value) > _MAX_PATCHES:
        return unseen(_FOLDER, f"holds {len(names.value)} patches, expected at most {_MAX_PATCHES}")
    patches: list[LivePatch] = []
    for name in names.value:
        patch = _read_patch(tree, name)
        if patch.value is None:
            return unseen_like(patch)
        patches.append(patch.value)
    return seen(_FOLDER, tuple(patches))


def replaces_skip(functions: Iterable[str]) -> bool:
    """Whether one of an object's folders, `<function>,<position>`, is the function that skips an instruction, or the PMU call in it.

    A function may bear a compiler's suffix: kvm_pmu_trigger_event.isra.0.
    """
    return any(name.partition(",")[0].partition(".")[0] in _FUNCTIONS for name in functions)


def _read_patch(tree: HostTree, name: str) -> Observed[LivePatch]:
    switches: dict[str, bool] = {}
    for switch in ("enabled", "transition"):
        path = f"{_FOLDER}/{name}/{switch}"
        text = tree.read_text(path)
        if text.value is None:
            return unseen_like(text)
        if text.value not in _SWITCH:
            return unseen(path, f"says {one_line(text.value, limit_characters=20)!r}, expected 0 or 1")
        switches[switch] = _SWITCH[text.value]
    functions: list[str] = []
    for patched in _OBJECTS:
        found = tree.names(f"{_FOLDER}/{name}/{patched}")
        if found.value is None and tree.exists(f"{_FOLDER}/{name}/{patched}"):
            return unseen_like(found)
        functions.extend(found.value or ())
    patch = LivePatch(
        name=one_line(name), enabled=switches["enabled"], transition=switches["transition"], replaces_skip=replaces_skip(functions)
    )
    return seen(_FOLDER, patch)
