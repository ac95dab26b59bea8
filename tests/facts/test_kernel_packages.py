import gzip
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts import kernel_packages, rpm
from exitguard.facts.kernel_packages import (
    gunzip,
    installed_guard_entries,
    parse_running_version,
    read_changelogs,
    read_running_version,
    running_changelog,
)
from exitguard.facts.tree import HostTree
from exitguard.model.host import Changelog
from exitguard.model.record import Observed

SUBJECT = "x86/kvm: skip PMU event trigger when guest PMU is disabled"
MARKERS = (SUBJECT, "VSTOR-132543")
RELEASE = "6.1.0-57-amd64"
RPM_RELEASE = "5.14.0-503.99.1.el9_5.x86_64"
GUARDED = f"linux (6.1.200-1) bookworm; urgency=medium\n\n  * {SUBJECT}\n\nlinux (6.1.199-1) bookworm; urgency=medium\n\n  * older\n"
needs_rpm = pytest.mark.skipif(
    shutil.which("rpm", path=rpm._SEARCH_PATH) is None or shutil.which("rpmbuild") is None, reason="rpm and rpmbuild are not installed"
)


def write_changelog(root: Path, package: str, text: str = GUARDED, name: str = "changelog.gz") -> Path:
    file = root / "usr/share/doc" / package / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()))
    return file


def read_one(
    root: Path, running_version: str | None = "6.1.200-1", release: str = RELEASE
) -> tuple[Observed[Changelog], tuple[str, ...] | None]:
    found = read_changelogs(HostTree(root), [release], markers=MARKERS, running_version=running_version)[release]
    return running_changelog(found, running_version), installed_guard_entries(found)


@pytest.mark.parametrize(
    "package",
    [
        f"linux-image-{RELEASE}",
        f"linux-image-{RELEASE}-unsigned",
        f"linux-image-unsigned-{RELEASE}",
        f"linux-modules-{RELEASE}",
        f"linux-binary-{RELEASE}",
        f"proxmox-kernel-{RELEASE}",
        f"proxmox-kernel-{RELEASE}-signed",
        f"pve-kernel-{RELEASE}",
    ],
)
@pytest.mark.parametrize("name", ["changelog.gz", "changelog.Debian.gz"])
def test_dpkg_changelog_that_names_the_guard_is_found(tmp_path: Path, package: str, name: str) -> None:
    write_changelog(tmp_path, package, name=name)
    changelog, installed = read_one(tmp_path)
    assert changelog.source == f"/usr/share/doc/{package}/{name}"
    assert changelog.get() == Changelog(package=package, guard_entries=(SUBJECT,))
    assert installed == (SUBJECT,)


def test_package_that_was_upgraded_under_the_same_name_does_not_guard_the_running_kernel(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}")
    changelog, installed = read_one(tmp_path, "6.1.199-1")
    assert changelog.get().guard_entries == ()
    assert installed == (SUBJECT,)


def test_changelog_without_the_running_version_has_a_reason(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}")
    changelog, _ = read_one(tmp_path, "6.1.201-1")
    assert changelog.reason == "has no entry for the running version 6.1.201-1: the package was changed since the boot"


SIGNED = "linux-signed (6.1.200-1) noble; urgency=low\n\n  * Master version: 6.1.200-1\n"
SILENT = "linux (6.1.200-1) noble; urgency=low\n\n  * other\n"


def test_changelog_of_a_signed_image_does_not_speak_for_the_kernel(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}", SIGNED)
    changelog, installed = read_one(tmp_path)
    assert (changelog.reason or "").startswith("does not name the guard, which says nothing: it only names the version")
    assert installed is None


@pytest.mark.parametrize(("text", "guard"), [(GUARDED, (SUBJECT,)), (SILENT, ())])
def test_signed_image_that_says_nothing_yields_to_the_modules_package(tmp_path: Path, text: str, guard: tuple[str, ...]) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}", SIGNED)
    write_changelog(tmp_path, f"linux-modules-{RELEASE}", text)
    changelog, installed = read_one(tmp_path)
    assert changelog.get() == Changelog(package=f"linux-modules-{RELEASE}", guard_entries=guard)
    assert installed == guard


def test_silence_of_proxmox_says_nothing_of_the_ubuntu_kernel_below(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"proxmox-kernel-{RELEASE}", SILENT)
    changelog, installed = read_one(tmp_path)
    assert "not what the Ubuntu kernel below did" in (changelog.reason or "")
    assert installed is None


def test_changelog_that_is_read_and_silent_has_no_entries(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}", SILENT)
    changelog, installed = read_one(tmp_path)
    assert (changelog.get().guard_entries, installed) == ((), ())


def test_running_kernel_that_does_not_say_its_version_has_no_changelog(tmp_path: Path) -> None:
    # A kernel that was built here has the release that it was given, and perhaps that of a package which is installed too.
    write_changelog(tmp_path, f"linux-image-{RELEASE}")
    changelog, installed = read_one(tmp_path, running_version=None)
    assert (changelog.reason or "").startswith("the running kernel does not say which package version it is")
    assert installed == (SUBJECT,)


@pytest.mark.parametrize("entry", ['Revert "{}"', "{}: reverted, breaks perf", "{} (prepared, not yet applied)"])
def test_guard_in_doubt_is_no_guard_and_says_so(tmp_path: Path, entry: str) -> None:
    doubtful = entry.format(SUBJECT)
    text = f"linux (6.1.200-1) x; urgency=low\n\n  * {doubtful}\n\nlinux (6.1.199-1) x; urgency=low\n\n  * {SUBJECT}\n"
    write_changelog(tmp_path, f"linux-image-{RELEASE}", text)
    changelog, installed = read_one(tmp_path)
    assert changelog.reason == f"the newest version that names the guard may withdraw it, or not have it yet: {doubtful}"
    assert installed is None
    assert read_one(tmp_path, "6.1.199-1")[0].get().guard_entries == (SUBJECT,)


def test_guard_that_one_of_the_packages_withdraws_is_in_doubt(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}")
    write_changelog(tmp_path, f"linux-modules-{RELEASE}", GUARDED.replace("* x86", "* Revert x86"))
    changelog, installed = read_one(tmp_path)
    assert (changelog.source, changelog.known) == (f"/usr/share/doc/linux-modules-{RELEASE}/changelog.gz", False)
    assert installed is None


def test_no_package_has_a_reason(tmp_path: Path) -> None:
    changelog, installed = read_one(tmp_path)
    assert changelog.reason == f"no package of kernel {RELEASE} has a changelog here, nor is there an rpm database"
    assert installed is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "ends early"), (b"plain text", "not a whole gzip file"), (gzip.compress(b"x" * 10_000)[:-12], "ends early")],
)
def test_broken_changelog_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}").write_bytes(content)
    changelog, _ = read_one(tmp_path)
    assert reason in (changelog.reason or "")


def test_broken_changelog_does_not_hide_a_good_one(tmp_path: Path) -> None:
    write_changelog(tmp_path, f"linux-image-{RELEASE}").write_bytes(b"broken")
    write_changelog(tmp_path, f"linux-modules-{RELEASE}")
    assert read_one(tmp_path)[0].get().guard_entries == (SUBJECT,)


def test_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    compressor = zlib.compressobj(9, zlib.DEFLATED, kernel_packages._GZIP)
    megabyte = bytes(1 << 20)
    bomb = b"".join(compressor.compress(megabyte) for _ in range(80)) + compressor.flush()
    write_changelog(tmp_path, f"linux-image-{RELEASE}").write_bytes(bomb)
    assert "unpacks to more than" in (read_one(tmp_path)[0].reason or "")


@given(st.binary(max_size=3_000_000) | st.integers(0, 3_000_000).map(bytes))
def test_gunzip_undoes_gzip_in_small_chunks(plain: bytes) -> None:
    chunks = list(gunzip(gzip.compress(plain)))
    assert b"".join(chunks) == plain
    assert all(len(chunk) <= 1 << 20 for chunk in chunks)


@given(st.binary())
def test_arbitrary_bytes_are_refused_with_a_value_error(compressed: bytes) -> None:
    with pytest.raises(ValueError, match="gzip"):
        list(gunzip(compressed))


@pytest.mark.parametrize(
    ("version", "signature", "expected"),
    [
        ("Linux version 6.12.113+deb12-amd64 (x) #1 SMP PREEMPT_DYNAMIC Debian 6.12.113-1~deb12u1 (2026-11-16)", "", "6.12.113-1~deb12u1"),
        ("Linux version 6.8.0-45-generic (buildd@x) #45-Ubuntu SMP", "Ubuntu 6.8.0-45.45-generic 6.8.12", "6.8.0-45.45"),
        ("", "Ubuntu 6.8.0-45.45~22.04.1-lowlatency-hwe 6.8.12", "6.8.0-45.45~22.04.1"),
        ("Linux version 6.8.12-11-pve (x) #1 SMP PREEMPT_DYNAMIC PMX 6.8.12-11 (2025-05-22T09:39Z)", "", "6.8.12-11"),
        ("Linux version 5.14.0-503.el9.x86_64 (x) #1 SMP PREEMPT_DYNAMIC Thu", "", None),
        ("Linux version 6.12.0-kvm (me@here) (gcc (Debian 12.2.0-14) 12.2.0) #7 SMP Mon Jan  5 2026", "", None),
    ],
)
def test_running_version_is_what_the_kernel_says_of_itself(version: str, signature: str, expected: str | None) -> None:
    assert parse_running_version(version, signature) == expected


def test_running_version_without_proc_is_none(tmp_path: Path) -> None:
    assert read_running_version(HostTree(tmp_path)) is None


@given(st.text(), st.text())
def test_running_version_of_arbitrary_text_never_raises(version: str, signature: str) -> None:
    parse_running_version(version, signature)


def test_rpm_database_without_rpm_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpm, "_SEARCH_PATH", str(tmp_path))
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").touch()
    changelog, _ = read_one(tmp_path, release=RPM_RELEASE)
    assert (changelog.source, changelog.unlock) == ("/var/lib/rpm", "install the package rpm")


@pytest.fixture(scope="module")
def rpm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sysroot whose rpm database knows a kernel-core that was built here, with the guard in its changelog."""
    root = tmp_path_factory.mktemp("rpm")
    database = root / "sysroot/usr/lib/sysimage/rpm"
    database.mkdir(parents=True)
    spec = root / "kernel.spec"
    version, release = RPM_RELEASE.removesuffix(".x86_64").split("-")
    spec.write_text(
        f"Name: kernel-core\nVersion: {version}\nRelease: {release}\nSummary: stand-in\nLicense: none\n%description\nstand-in\n%files\n"
        f"%changelog\n* Tue Jun 02 2026 A <a@example.org> [{version}-{release}]\n- {SUBJECT} (A) [VSTOR-132543]\n- other\n"
    )
    build = ["rpmbuild", "--quiet", "--target", "x86_64", "--define", f"_topdir {root}/build", "-bb", str(spec)]
    subprocess.run(build, check=True, capture_output=True)
    package = next((root / "build").rglob("*.rpm"))
    subprocess.run(["rpm", "--dbpath", database, "--nodeps", "--justdb", "-i", package], check=True, capture_output=True)
    return root / "sysroot"


@needs_rpm
def test_rpm_changelog_that_names_the_guard_is_found(rpm_root: Path) -> None:
    changelog, installed = read_one(rpm_root, release=RPM_RELEASE)
    package = f"kernel-core-{RPM_RELEASE}"
    assert changelog.source == f"rpm -q --changelog {package}"
    assert changelog.get() == Changelog(package=package, guard_entries=(f"{SUBJECT} (A) [VSTOR-132543]",))
    assert installed == changelog.get().guard_entries


@needs_rpm
def test_kernel_that_rpm_does_not_know_has_a_reason(rpm_root: Path) -> None:
    assert read_one(rpm_root, release="5.14.0-1.el9.x86_64")[0].reason == "rpm knows no installed package kernel-core-5.14.0-1.el9.x86_64"


@needs_rpm
def test_reading_a_sysroot_leaves_its_rpm_database_alone(rpm_root: Path) -> None:
    files = sorted(rpm_root.rglob("*"))
    before = [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    assert read_one(rpm_root, release=RPM_RELEASE)[0].known
    assert [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(rpm_root.rglob("*"))] == before


@needs_rpm
def test_rpm_database_that_is_none_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").write_bytes(b"not a database")
    assert not read_one(tmp_path, release=RPM_RELEASE)[0].known


def test_rpm_database_larger_than_the_limit_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpm, "_MAX_DATABASE_BYTES", 1000)
    monkeypatch.setattr(rpm.shutil, "which", lambda *_args, **_options: "/usr/bin/rpm")
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").write_bytes(bytes(1001))
    assert read_one(tmp_path, release=RPM_RELEASE)[0].reason == "the rpm database is larger than 1000 bytes"


@pytest.fixture
def own_rpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands where rpm would, to misbehave as rpm on a broken database may."""
    program = tmp_path / "rpm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(rpm, "_PROGRAM", str(program))
    return program


def test_rpm_that_hangs_is_given_up(own_rpm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_rpm.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(rpm, "_LIMIT_SECONDS", 0.1)
    with pytest.raises(rpm.RpmTimeoutError, match="did not finish within"):
        list(rpm.query_changelog("/nowhere", "kernel", deadline=rpm.query_deadline()))


def test_rpm_that_closes_its_output_and_hangs_is_given_up(own_rpm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_rpm.write_text("#!/bin/sh\nexec sleep 60 >&-\n")
    monkeypatch.setattr(rpm, "_LIMIT_SECONDS", 0.1)
    with pytest.raises(rpm.RpmTimeoutError, match="did not finish within"):
        list(rpm.query_changelog("/nowhere", "kernel", deadline=rpm.query_deadline()))


def test_rpm_that_never_stops_writing_is_given_up(own_rpm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_rpm.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    monkeypatch.setattr(rpm, "_MAX_OUTPUT_BYTES", 1_000_000)
    with pytest.raises(rpm.RpmError, match="wrote more than 1000000 bytes"):
        list(rpm.query_changelog("/nowhere", "kernel", deadline=rpm.query_deadline()))


def test_rpm_is_given_the_package_as_one_argument(own_rpm: Path) -> None:
    own_rpm.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    assert (
        b"".join(rpm.query_changelog("/a b", "kernel; x", deadline=rpm.query_deadline()))
        == b"--dbpath\n/a b\n-q\n--changelog\n--\nkernel; x\n"
    )


@pytest.fixture
def asked(own_rpm: Path, tmp_path: Path) -> Path:
    """Where the program that stands for rpm notes the packages that it was asked about; beside a database that it never reads."""
    packages = tmp_path / "asked"
    packages.touch()
    own_rpm.write_text(f'#!/bin/sh\nfor package; do :; done\necho "$package" >> {packages}\nexit 1\n')
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    (tmp_path / "var/lib/rpm/rpmdb.sqlite").touch()
    return packages


def test_rpm_that_hangs_is_asked_no_more(own_rpm: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_rpm.write_text(own_rpm.read_text().replace("exit 1", "exec sleep 60"))
    monkeypatch.setattr(rpm, "_LIMIT_SECONDS", 0.5)
    releases = [f"5.14.0-{number}.el9.x86_64" for number in range(5)]
    found = read_changelogs(HostTree(tmp_path), releases, markers=MARKERS, running_version=None)
    assert len(asked.read_text().splitlines()) <= 1
    assert len({found[release].reason for release in releases}) == 1
    assert "rpm did not finish within" in (found[releases[-1]].reason or "")


def test_rpm_is_asked_about_the_first_kernels_only(asked: Path, tmp_path: Path) -> None:
    releases = [f"5.14.0-{number}.el9.x86_64" for number in range(kernel_packages._MAX_RPM_KERNELS + 1)]
    found = read_changelogs(HostTree(tmp_path), releases, markers=MARKERS, running_version=None)
    assert asked.read_text().splitlines()[-1] == f"vzkernel-{releases[-2]}"
    assert found[releases[-2]].reason == f"rpm knows no installed package kernel-core-{releases[-2]}"
    assert found[releases[-1]].reason == "rpm was asked about 16 other kernels, and about no more"


@pytest.mark.usefixtures("asked")
def test_rpm_kernel_is_tied_to_its_build_by_its_release(own_rpm: Path, tmp_path: Path) -> None:
    own_rpm.write_text(f"#!/bin/sh\necho '* Tue Jun 02 2026 A <a@example.org> [5.14.0-503]'\necho '- {SUBJECT}'\n")
    changelog, installed = read_one(tmp_path, running_version=None, release=RPM_RELEASE)
    assert changelog.get() == Changelog(package=f"kernel-core-{RPM_RELEASE}", guard_entries=(SUBJECT,))
    assert installed == (SUBJECT,)


@pytest.mark.usefixtures("asked")
def test_rpm_package_without_a_changelog_is_not_silent(own_rpm: Path, tmp_path: Path) -> None:
    own_rpm.write_text("#!/bin/sh\necho '(none)'\n")
    changelog, installed = read_one(tmp_path, running_version=None, release=RPM_RELEASE)
    assert changelog.reason == "does not name the guard, which says nothing: it lists no changes"
    assert installed is None


def test_time_out_is_the_reason_whatever_rpm_said_of_another_name(own_rpm: Path, asked: Path, tmp_path: Path) -> None:
    own_rpm.write_text(own_rpm.read_text().replace("exit 1", 'case "$package" in kernel-core-*) exit 1;; esac\nexec sleep 60'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rpm, "_LIMIT_SECONDS", 2.0)
        changelog, _ = read_one(tmp_path, release=RPM_RELEASE)
    assert asked.read_text().splitlines()[1:] == [f"kernel-{RPM_RELEASE}"]
    assert "rpm did not finish within" in (changelog.reason or "")
