"""Which files hold the code of KVM: of a release that is installed, and of what an operator names.

KVM is a module (kvm.ko, compressed or not) or a part of the kernel's image. modules.dep and modules.builtin (depmod(8)) say which. A
module's BTF continues that of the kernel it was built with, so a module comes with the image that has the beginning.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exitguard.facts.boot import RELEASE, image_paths
from exitguard.facts.elf_notes import read_build_id
from exitguard.facts.machine_code.obstacle import Obstacle
from exitguard.facts.tree import HostTree, why

#: The BTF of the running kernel, raw: no ELF file around it (kernel/bpf/sysfs_btf.c).
RUNNING_BTF = "/sys/kernel/btf/vmlinux"
_RUNNING_RELEASE = "/proc/sys/kernel/osrelease"
_RUNNING_MODULE_NOTES = "/sys/module/kvm/notes/.note.gnu.build-id"
#: In the order in which depmod's own default (`kmod`) would take them if there were several.
_MODULE_NAMES = ("kvm.ko", "kvm.ko.gz", "kvm.ko.xz", "kvm.ko.zst")
_MODULE_FOLDERS = ("/lib/modules", "/usr/lib/modules")
_USUAL_FOLDER = "kernel/arch/x86/kvm"
_BUILT_IN = "kernel/arch/x86/kvm/kvm.ko"
#: A distribution's modules.dep has up to 1 MB.
_LIST_LIMIT_BYTES = 16 << 20
_MOST_MODULES = 8
_DEPENDENCIES = re.compile(r"^([^:\n]{1,4096}/)?(kvm\.ko(?:\.gz|\.xz|\.zst)?):", re.MULTILINE)

#: What a folder with a kernel or two has at most, and how deep it goes. A whole host has more: that is audited with --sysroot.
_MOST_ENTRIES = 500_000
_DEEPEST = 40
_BELOW_MODULES = re.compile(r"(?P<root>(?:.*?/)?)(?:usr/)?lib/modules/(?P<release>[^/]+)/(?P<inside>.+)", re.DOTALL)
_IN_BOOT = re.compile(r"(?P<root>(?:.*?/)?)(?:usr/lib/debug/)?boot/(?P<kind>vmlinuz|vmlinux|System\.map)-(?P<release>[^/]+)", re.DOTALL)


@dataclass(frozen=True)
class ImageFiles:
    """The files that one reading takes. Paths are as the host knows them: inside a HostTree."""

    #: What is read: a module, a vmlinux or a vmlinuz.
    code: str
    release: str | None = None
    #: What has the beginning of the module's BTF: raw BTF, a vmlinux or a vmlinuz.
    btf_base: str | None = None
    #: The names of a stripped vmlinux.
    system_map: str | None = None
    #: The build-id of the module that the base certainly belongs to; None where nothing but its place ties them.
    base_of_build: str | None = None
    #: Whether an operator named the base: then one that cannot be read is no small matter.
    base_was_named: bool = False


def files_of_release(tree: HostTree, release: str) -> tuple[ImageFiles, ...]:
    """The code of KVM in an installed release: its modules, or the images that have it built in. Empty where there are none."""
    if not RELEASE.fullmatch(release):
        return ()
    folder = next((f"{folder}/{release}" for folder in _MODULE_FOLDERS if tree.exists(f"{folder}/{release}")), None)
    if folder is not None:
        modules = _modules(tree, folder)
        if modules:
            base, build = _base_of(tree, release)
            return tuple(ImageFiles(code=path, release=release, btf_base=base, base_of_build=build) for path in modules)
        if not _is_built_in(tree, folder):
            return ()
    return _images(tree, release)


def _modules(tree: HostTree, folder: str) -> tuple[str, ...]:
    """kvm.ko as depmod chose it (updates/, extra/ and weak-updates/ go before kernel/), or in its usual place where there is no list."""
    listed = tree.read_text(f"{folder}/modules.dep", limit_bytes=_LIST_LIMIT_BYTES)
    if listed.value is not None:
        named = dict.fromkeys((match[1] or "") + match[2] for match in _DEPENDENCIES.finditer(listed.value))
        # depmod of old wrote absolute paths.
        return tuple(name if name.startswith("/") else f"{folder}/{name}" for name in named)[:_MOST_MODULES]
    usual = (f"{folder}/{_USUAL_FOLDER}/{name}" for name in _MODULE_NAMES)
    return tuple(path for path in usual if tree.exists(path))


def _is_built_in(tree: HostTree, folder: str) -> bool:
    listed = tree.read_text(f"{folder}/modules.builtin", limit_bytes=_LIST_LIMIT_BYTES)
    return listed.value is not None and _BUILT_IN in listed.value.split()


def _base_of(tree: HostTree, release: str) -> tuple[str | None, str | None]:
    """The BTF that the module's continues, and the build-id of the module that it is certainly the beginning for.

    What runs shows its own to everybody, at little cost; it fits the module that runs. A file that was installed over it since is of
    another build, perhaps of the same release, and its BTF would be read wrongly.
    """
    running = tree.read_text(_RUNNING_RELEASE)
    if running.value == release and tree.exists(RUNNING_BTF):
        build = read_build_id(tree, _RUNNING_MODULE_NOTES)
        if build.value is not None:
            return RUNNING_BTF, build.value
    return next((path for path in image_paths(release) if tree.exists(path)), None), None


def _images(tree: HostTree, release: str) -> tuple[ImageFiles, ...]:
    """The images of a release: those with symbols first."""
    with_symbols = (
        f"/boot/vmlinux-{release}",
        f"/usr/lib/debug/boot/vmlinux-{release}",
        f"/usr/lib/debug/lib/modules/{release}/vmlinux",
        f"/lib/modules/{release}/vmlinux",
    )
    paths = [path for path in with_symbols if tree.exists(path)]
    paths += [path for path in image_paths(release) if tree.exists(path)][:1]  # one file in two places
    maps = (f"/boot/System.map-{release}", f"/lib/modules/{release}/System.map")
    system_map = next((path for path in maps if tree.exists(path)), None)
    return tuple(ImageFiles(code=path, release=release, system_map=system_map) for path in paths)


def files_of_path(path: Path, *, with_base: Path | None = None) -> tuple[ImageFiles, ...]:
    """What an operator names: a module or an image of a kernel, or a folder with unpacked packages. Raises Obstacle."""
    return files_of_paths((path,), with_base=with_base)


def files_of_paths(paths: Sequence[Path], *, with_base: Path | None = None) -> tuple[ImageFiles, ...]:
    """Like `files_of_path`, for several that may belong together, as one package has the modules and another the image.

    Raises Obstacle for a path that is not there, and for a folder without a kernel.
    """
    if with_base is not None and not _is(Path.is_file, with_base):
        raise Obstacle(f"{with_base}: expected the file of a kernel (vmlinuz or vmlinux) that has the beginning of the BTF")
    given = [(path, _found(path) if _is(Path.is_dir, path) else None) for path in paths]
    kernels = _Kernels()
    for path, found in given:
        kernels.add(path, found if found is not None else [str(path.absolute())])
    files: list[ImageFiles] = []
    for path, found in given:
        if found is None:
            files.append(_named(path, kernels))
            continue
        here = kernels.of_folder(path, found)
        if not here and not kernels.completes_another(path):
            raise Obstacle(
                f"{path}: holds no kvm.ko and no kernel that KVM is built into. Expected an unpacked kernel package, with "
                "lib/modules/RELEASE/kernel/arch/x86/kvm/kvm.ko; where modules and image are packages of their own, name both"
            )
        files += here
    if with_base is not None:
        base = str(with_base.absolute())
        files = [replace(each, btf_base=base, base_was_named=True) if is_module(each.code) else each for each in files]
    return tuple(dict.fromkeys(files))


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether a path is of a kind. Raises Obstacle where it may not be looked at."""
    try:
        return kind(path)
    except OSError as error:
        raise Obstacle(f"{path}: {why(error)}: name a file that may be read, or run as root") from None


def is_module(path: str) -> bool:
    """Whether a path names the module KVM, compressed or not."""
    return path.rpartition("/")[2] in _MODULE_NAMES


def _named(path: Path, kernels: "_Kernels") -> ImageFiles:
    """A file that an operator names, and what lies where it belongs in the same tree."""
    try:
        path.stat()
    except OSError as error:
        raise Obstacle(
            f"{path}: {why(error)}. Expected a kernel module, a vmlinux or a vmlinuz, or a folder with an unpacked package"
        ) from None
    code = str(path.absolute())
    match = _BELOW_MODULES.fullmatch(code) or _IN_BOOT.fullmatch(code)
    if match is None or not RELEASE.fullmatch(match["release"]):
        return ImageFiles(code=code)
    release, root = match["release"], match["root"]
    here = [f"{root}boot/vmlinuz-{release}", f"{root}lib/modules/{release}/vmlinuz", f"{root}usr/lib/modules/{release}/vmlinuz"]
    if match.re is _BELOW_MODULES and match["inside"] not in ("vmlinuz", "vmlinux"):
        base = next((each for each in here if Path(each).is_file()), None) or kernels.image_of(release)
        return ImageFiles(code=code, release=release, btf_base=base)
    maps = [f"{root}boot/System.map-{release}", f"{root}lib/modules/{release}/System.map", f"{root}usr/lib/modules/{release}/System.map"]
    system_map = next((each for each in maps if Path(each).is_file()), None) or kernels.system_maps.get(release)
    return ImageFiles(code=code, release=release, system_map=system_map)


@dataclass
class _Kernels:
    """What of kernels was found in all folders that were named, by release."""

    #: With the folder in which each was found: one of the same folder goes before one of another.
    images: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    system_maps: dict[str, str] = field(default_factory=dict)
    built_in: set[str] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    _releases: dict[Path, set[str]] = field(default_factory=dict)

    def add(self, folder: Path, found: Sequence[str]) -> None:
        for file in found:
            match = _BELOW_MODULES.fullmatch(file) or _IN_BOOT.fullmatch(file)
            if match is None or not RELEASE.fullmatch(match["release"]):
                continue
            release = match["release"]
            kind = match["inside"] if match.re is _BELOW_MODULES else match["kind"]
            if kind in ("vmlinuz", "vmlinux"):
                self.images.setdefault(release, []).append((folder, file))
            elif kind == "System.map":
                self.system_maps.setdefault(release, file)
            elif kind == "modules.builtin" and _is_built_in(HostTree(), file.rpartition("/")[0]):
                self.built_in.add(release)
            elif is_module(file):
                self.modules.add(release)
            else:
                continue
            self._releases.setdefault(folder, set()).add(release)

    def image_of(self, release: str, folder: Path | None = None) -> str | None:
        """The image of a release, of this folder where it has one; None where there are several and none is nearer."""
        images = self.images.get(release, [])
        nearer = [file for where, file in images if where == folder]
        if nearer:
            return nearer[0]
        return images[0][1] if len(images) == 1 else None

    def of_folder(self, folder: Path, found: Sequence[str]) -> list[ImageFiles]:
        files = []
        for file in found:
            match = _BELOW_MODULES.fullmatch(file) or _IN_BOOT.fullmatch(file)
            release = match["release"] if match is not None and RELEASE.fullmatch(match["release"]) else None
            if is_module(file):
                base = self.image_of(release, folder) if release is not None else None
                files.append(ImageFiles(code=file, release=release, btf_base=base))
            elif (
                release is not None
                and release in self.built_in - self.modules
                and file in (each for _, each in self.images.get(release, ()))
            ):
                files.append(ImageFiles(code=file, release=release, system_map=self.system_maps.get(release)))
        return files

    def completes_another(self, folder: Path) -> bool:
        """Whether a folder has a part of a kernel whose code is in another one."""
        return any(release in self.modules or release in self.built_in for release in self._releases.get(folder, ()))


def _found(folder: Path) -> list[str]:
    """The files of kernels below a folder, sorted; links are not followed. Raises Obstacle."""
    files = [file for file in _walk(str(folder.absolute())) if is_module(file) or _is_of_kernel(file)]
    return sorted(files)


def _is_of_kernel(file: str) -> bool:
    match = _BELOW_MODULES.fullmatch(file)
    if match is not None:
        return match["inside"] in ("vmlinuz", "vmlinux", "System.map", "modules.builtin")
    return _IN_BOOT.fullmatch(file) is not None


def _walk(top: str) -> Iterator[str]:
    pending = [(top, 0)]
    entries_seen = 0
    while pending:
        folder, depth = pending.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    entries_seen += 1
                    if entries_seen > _MOST_ENTRIES:
                        raise Obstacle(
                            f"{top}: holds more than {_MOST_ENTRIES} files. Expected an unpacked kernel package; "
                            "a whole host's tree is for `exitguard audit --sysroot`"
                        )
                    if entry.is_dir(follow_symlinks=False):
                        if depth < _DEEPEST:
                            pending.append((entry.path, depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.path
        except OSError as error:
            # Passed over in silence, a folder that may hold an affected kernel would make the rest look like all there is.
            raise Obstacle(
                f"{folder}: {why(error)}: whether a kernel is in it is not known. Name what may be read, or run as root"
            ) from None
