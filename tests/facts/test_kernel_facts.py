import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.facts.kernel import parse_os_release, parse_symbols, read_architecture, read_distribution, read_kernel, read_release
from exitguard.facts.tree import HostTree

CORE = b"ffffffff81000000 T _stext\nffffffff82000000 T _etext\n"


def symbols(*lines: bytes, kvm_is_loaded_module: bool = False) -> tuple[str, ...] | None:
    return parse_symbols(CORE + b"".join(line + b"\n" for line in lines), kvm_is_loaded_module=kvm_is_loaded_module).value


@pytest.mark.parametrize(
    "suffix", [b"", b".isra.0", b".constprop.12", b".part.0", b".cold", b".isra.0.cold", b".llvm.1234567890", b".constprop.0.isra.1"]
)
@pytest.mark.parametrize("module", [b"", b"\t[kvm]", b"\t[kvm_intel]", b"\t[kvm_amd]"])
def test_suffixes_of_compilers_are_removed(suffix: bytes, module: bytes) -> None:
    assert symbols(b"ffffffffc0001000 t kvm_pmu_trigger_event" + suffix + module) == ("kvm_pmu_trigger_event",)


@pytest.mark.parametrize(
    "line",
    [
        b"ffffffffc0001000 t __pfx_kvm_pmu_trigger_event\t[kvm]",
        b"ffffffffc0001000 r __ksymtab_kvm_pmu_trigger_event\t[kvm]",
        b"ffffffffc0001000 r kvm_pmu_trigger_event\t[kvm]",
        b"ffffffffc0001000 t kvm_pmu_trigger_event_late\t[kvm]",
        b"ffffffffc0001000 t kvm_pmu_trigger_event.other\t[kvm]",
        b"ffffffffc0001000 t kvm_pmu_trigger_event\t[livepatch_kvm]",
        b"ffffffffc0001000 t kvm_pmu_trigger_event\t[kvmgt]",
        b"ffffffffc0001000 t a kvm_pmu_trigger_event\t[kvm]",
        b"nonsense kvm_pmu_trigger_event",
    ],
)
def test_what_only_looks_like_the_symbol_does_not_count(line: bytes) -> None:
    assert symbols(line) == ()


def test_addresses_hidden_from_the_reader_do_not_matter() -> None:
    assert symbols(b"0000000000000000 T kvm_skip_emulated_instruction\t[kvm]") == ("kvm_skip_emulated_instruction",)


def test_symbols_are_sorted_and_single() -> None:
    found = symbols(
        b"0 T kvm_skip_emulated_instruction",
        b"0 t kvm_pmu_trigger_event.cold",
        b"0 t kvm_pmu_trigger_event",
        b"0 T kvm_pmu_instruction_retired",
    )
    assert found == ("kvm_pmu_instruction_retired", "kvm_pmu_trigger_event", "kvm_skip_emulated_instruction")


def test_kernel_without_kvm_has_no_telling_symbol() -> None:
    assert symbols() == ()


def test_listing_that_ends_before_the_loaded_kvm_module_has_a_reason() -> None:
    assert "none of its symbols" in (parse_symbols(CORE, kvm_is_loaded_module=True).reason or "")
    assert symbols(b"0 t kvm_init\t[kvm]", kvm_is_loaded_module=True) == ()


@pytest.mark.parametrize(
    ("listing", "reason"),
    [(b"", "empty"), (CORE[:-1], "ends in the middle of a line"), (CORE[:26], "truncated"), (CORE[26:], "truncated"), (b"\n", "truncated")],
)
def test_listing_that_is_not_whole_has_a_reason(listing: bytes, reason: str) -> None:
    assert reason in (parse_symbols(listing).reason or "")


@given(st.binary() | st.binary().map(lambda content: CORE + content + b" t kvm_pmu_trigger_event\n"))
def test_arbitrary_listing_yields_symbols_or_a_reason(listing: bytes) -> None:
    parse_symbols(listing)


def test_os_release_quoting_is_the_shells() -> None:
    text = '# comment\nID=\'rocky\'\nVERSION_ID="9.5"\nPRETTY_NAME="a \\"b\\" \\$c"\nBROKEN="x\nID_LIKE="rhel centos"\n'
    distribution = parse_os_release("x", text).get()
    assert (distribution.id, distribution.version_id, distribution.name) == ("rocky", "9.5", 'a "b" $c')


def test_os_release_has_defaults() -> None:
    distribution = parse_os_release("x", "HOME_URL=x\n").get()
    assert (distribution.id, distribution.version_id, distribution.name) == ("linux", "", "Linux")
    assert parse_os_release("x", "nothing\n").reason == "holds no NAME=value line"


def test_os_release_of_the_vendor_is_read_where_etc_has_none(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text("ID=x\n")
    observed = read_distribution(HostTree(tmp_path))
    assert (observed.source, observed.get().id) == ("/usr/lib/os-release", "x")


@given(st.text())
def test_arbitrary_os_release_yields_printable_text_or_a_reason(text: str) -> None:
    observed = parse_os_release("x", text)
    assert observed.value is None or observed.value.name.isprintable()


@pytest.mark.parametrize("text", ["", "../../etc", "--root=/", "a b", "6.1\n7.0", "x" * 65])
def test_release_that_could_not_be_one_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(text)
    assert "is not a kernel release" in (read_release(HostTree(tmp_path)).reason or "")


def test_architecture_of_a_sysroot_is_its_own(tmp_path: Path) -> None:
    assert not read_architecture(HostTree(tmp_path)).known
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/arch").write_text("aarch64\n")
    assert read_architecture(HostTree(tmp_path)).value == "aarch64"


def test_installed_kernel_whose_changelog_is_silent_differs_from_one_that_has_none(tmp_path: Path) -> None:
    for release in ("6.1.0-1-amd64", "6.1.0-2-amd64", "6.1.0-3-amd64"):
        (tmp_path / "lib/modules" / release).mkdir(parents=True)
        (tmp_path / "lib/modules" / release / "vmlinuz").touch()
    for release, entry in (("6.1.0-2-amd64", "another change"), ("6.1.0-3-amd64", "the guard")):
        documentation = tmp_path / f"usr/share/doc/linux-image-{release}"
        documentation.mkdir(parents=True)
        changelog = f"linux (6.1.9-1) x; urgency=low\n\n  * {entry}\n"
        (documentation / "changelog.gz").write_bytes(gzip.compress(changelog.encode()))
    installed = read_kernel(HostTree(tmp_path), changelog_markers=("the guard",)).installed.get()
    assert [(kernel.release, kernel.guard_entries) for kernel in installed] == [
        ("6.1.0-1-amd64", None),
        ("6.1.0-2-amd64", ()),
        ("6.1.0-3-amd64", ("the guard",)),
    ]
