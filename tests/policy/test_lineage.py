"""Lineages: the first that matches the whole text and has the version in its range speaks; hostile text matches nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.policy.lineage import LONGEST_TEXT, find_kernel_lineage, find_qemu_lineage, version_in_range
from exitguard.policy.load import load_rulebook
from exitguard.policy.schema import KernelLineage, Kernels, QemuLineage, Qemus

RULEBOOK = load_rulebook()


@pytest.mark.parametrize(
    ("release", "since", "before", "inside"),
    [
        ("6.9", "6.9", None, True),
        ("6.9.0", "6.9", None, True),
        ("6.9-rc1", "6.9", "6.18", True),
        ("6.8.12", None, "6.9", True),
        ("6.8.12", "6.9", None, False),
        ("6.10.1", "6.9", "6.18", True),
        ("6.18", "6.9", "6.18", False),
        ("6.18.0-1-amd64", "6.9", "6.18", False),
        ("10.2.90", None, "11.0", True),
        ("11", "11.0", None, True),
        ("5.14.0-70.13.1.el9_0.x86_64", "5.14", "5.14.1", True),
        ("1.2.3.4.5", "1.2.3.4", None, True),
        ("6", None, None, True),
        ("", None, None, False),
        ("v6.9", None, None, False),
        (" 6.9", None, None, False),
        ("-6.9", None, None, False),
        ("\N{ARABIC-INDIC DIGIT SIX}.9", None, None, False),
        ("6.1234567890", None, None, False),
        ("1234567890.1", None, None, False),
        ("6." + "9" * LONGEST_TEXT, None, None, False),
    ],
)
def test_version_in_range(release: str, since: str | None, before: str | None, inside: bool) -> None:  # noqa: FBT001
    assert version_in_range(release, since, before) is inside


numbers = st.lists(st.integers(0, 999_999_999), min_size=1, max_size=4)


@given(release=numbers, bound=numbers, suffix=st.sampled_from(["", "-rc1", "-56-amd64", "+deb13", ".el9"]))
def test_every_version_is_either_before_a_bound_or_since_it(release: list[int], bound: list[int], suffix: str) -> None:
    text, limit = ".".join(map(str, release)) + suffix, ".".join(map(str, bound))
    padded = [part + [0] * (4 - len(part)) for part in (release, bound)]
    assert version_in_range(text, limit, None) is (padded[0] >= padded[1])
    assert version_in_range(text, None, limit) is not version_in_range(text, limit, None)
    assert not version_in_range(text, limit, limit)


@given(text=st.text())
def test_any_text_has_at_most_one_lineage(text: str) -> None:
    kernel = find_kernel_lineage(RULEBOOK.kernels, text)
    assert kernel is None or text[:1] in set("0123456789")
    assert find_qemu_lineage(RULEBOOK.qemus, text, text) is None


def kernels(*patterns: str) -> Kernels:
    lineages = tuple(
        KernelLineage(id=f"lineage-{index}", release=pattern, state="affected", provenance="inference", note="a test")
        for index, pattern in enumerate(patterns)
    )
    return Kernels(schema_version=1, changelog_markers=(), lineages=lineages)


def test_first_matching_lineage_speaks() -> None:
    lineage = find_kernel_lineage(kernels("5.*", "6.*", ".*"), "6.1.0")
    assert lineage is not None
    assert lineage.id == "lineage-1"


@pytest.mark.parametrize("release", ["6.1.0-x", "16.1.0", "6.1.0\n", "6.1.0 ", "6.1.\N{ARABIC-INDIC DIGIT ZERO}"])
def test_pattern_has_to_match_the_whole_release(release: str) -> None:
    assert find_kernel_lineage(kernels(r"6\.1\.\d"), "6.1.0") is not None
    assert find_kernel_lineage(kernels(r"6\.1\.\d"), release) is None


def test_endless_release_matches_nothing() -> None:
    assert find_kernel_lineage(kernels(".*"), "6.1" + "x" * (LONGEST_TEXT - 3)) is not None
    assert find_kernel_lineage(kernels(".*"), "6.1" + "x" * LONGEST_TEXT) is None


def test_empty_package_pattern_matches_only_the_empty_package() -> None:
    qemus = Qemus(
        schema_version=1, lineages=(QemuLineage(id="upstream", package="", clears_enable_pmu=True, provenance="source", note="a test"),)
    )
    assert find_qemu_lineage(qemus, "11.0.0", "") is not None
    assert find_qemu_lineage(qemus, "11.0.0", "\n") is None
    assert find_qemu_lineage(qemus, "11.0.0", "v11.0.0-123-gabcdef") is None
    assert find_qemu_lineage(qemus, "11.0.0" * LONGEST_TEXT, "") is None
