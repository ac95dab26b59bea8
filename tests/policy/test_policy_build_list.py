"""Builds added to a kernels file: every byte beside the list stays, and the file says what it said, and the builds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitguard.model.kernel import Body, KernelState
from exitguard.policy.build_list import new_builds_text, with_builds
from exitguard.policy.load import load_rulebook, read_kernels
from exitguard.policy.schema import BuildVerdict, Provenance
from exitguard.policy.yaml_source import LIMIT_BYTES, SourceError, parse_yaml
from exitguard.resources import policies_dir

HEAD = "kind: kernels\nschema_version: 1\n"
OLD = "0a1b2c3d4e5f60718293"
ITEM = f"build_id: {OLD}\n    release: 6.1.0\n    state: guarded\n    provenance: source\n    note: "
NEW = BuildVerdict(
    build_id="11" * 20,  # digits alone: a number, were it not in quotes
    release="6.12.117+deb12-cloud-amd64",
    state=KernelState.AFFECTED,
    body=Body.B,
    provenance=Provenance.LAB,
    note="By machine code: kvm_pmu_trigger_event is called wherever an instruction was skipped, and builds a bitmap and walks it; it's so.",
)
OTHER = NEW.model_copy(update={"build_id": "22" * 20, "state": KernelState.EQUIVALENT, "body": None, "note": "'short' # no comment: text"})


def builds_of(text: str, tmp_path: Path) -> tuple[BuildVerdict, ...]:
    file = tmp_path / "kernels.yaml"
    file.write_bytes(text.encode())
    return read_kernels(file)[1].builds


def test_new_file_brings_the_builds_and_nothing_else(tmp_path: Path) -> None:
    text = new_builds_text((NEW, OTHER))
    assert builds_of(text, tmp_path) == (NEW, OTHER)
    assert max(map(len, text.splitlines())) <= 140
    kernels = load_rulebook((tmp_path / "kernels.yaml",)).kernels
    assert kernels.lineages == load_rulebook().kernels.lineages
    assert kernels.builds[-2:] == (NEW, OTHER)


# `@` is where the builds belong.
PLACES = [
    f"{HEAD}builds:\n  - {ITEM}a note\n@",
    f"{HEAD}builds:\n  - {ITEM}a note",
    f"{HEAD}builds:\n- build_id: '{OLD}'\n  release: a\n  state: guarded\n  provenance: source\n  note: a note\n@",
    f"{HEAD}builds:\n  # one comment\n  - {ITEM}a note  # another\n@\n  # a third\n\n# a fourth\n",
    f"builds:\n  - {ITEM}a note\n@{HEAD}",
    f"builds:\n  - {ITEM}>-\n      folded\n      text\n@\n# Next.\n{HEAD}",
    f"builds:\n  - {ITEM}|\n      # text\n      'text\n@{HEAD}",
    f"builds:\n  - {ITEM}|+\n      kept\n\n\n@{HEAD}",
    f"builds:\n  - {ITEM}>-\n      no line end\n@\n\n{HEAD}",
    f"# a comment\n{HEAD}@# the end\n",
    f"---\n{HEAD}@...\n",
    f"{HEAD}builds: [{{build_id: '{OLD}', release: a, state: guarded, provenance: list, note: n}}@]  # inline\n",
    f"{HEAD}builds: [\n  {{build_id: '{OLD}', release: a, state: guarded, provenance: list, note: n}}@,  # inline\n]\n",
    "{kind: kernels, schema_version: 1@}\n",
    f"{{kind: kernels, schema_version: 1, builds: [{{build_id: '{OLD}', release: a, state: guarded, provenance: list, note: n}}@]}}\n",
    f"  kind: kernels\n  schema_version: 1\n  builds:\n    - {ITEM.replace('    ', '      ')}a note\n@",
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("text", PLACES)
def test_builds_are_added_where_the_list_ends_and_not_a_byte_beside_is_changed(text: str, mark: str, newline: str, tmp_path: Path) -> None:
    text = mark + text.replace("\n", newline)
    head, _, tail = text.partition("@")
    before = head + tail
    known = builds_of(before, tmp_path)
    after = with_builds(before, "kernels.yaml", (NEW, OTHER))
    assert after.startswith(head)
    assert after.endswith(tail)
    assert builds_of(after, tmp_path) == (*known, NEW, OTHER)
    assert after.count("\n") == after.count(newline)


@pytest.mark.parametrize("text", ["builds: []\n", "builds: [ ]  # none yet\n", "builds:\n  []\n", "builds: [\n  # none\n]\n", "builds: []"])
@pytest.mark.parametrize("form", ["{text}", "{line}{head}"])
def test_empty_list_becomes_one_of_lines(text: str, form: str, tmp_path: Path) -> None:
    text = form.format(text=f"{HEAD}{text}", line=f"{text.rstrip()}\n", head=HEAD)
    after = with_builds(text, "kernels.yaml", (NEW,))
    assert builds_of(after, tmp_path) == (NEW,)
    assert "  - build_id: '" in after
    assert ("# none yet" in after) == ("# none yet" in text)
    assert HEAD.rstrip() in after


def test_empty_list_in_braces_stays_in_braces(tmp_path: Path) -> None:
    after = with_builds("{kind: kernels, builds: [], schema_version: 1}", "kernels.yaml", (NEW,))
    assert builds_of(after, tmp_path) == (NEW,)


def test_shipped_kernels_can_be_added_to_again_and_again(tmp_path: Path) -> None:
    shipped = (policies_dir() / "kernels.yaml").read_bytes().decode()
    once = with_builds(shipped, "kernels.yaml", (NEW,))
    twice = with_builds(once, "kernels.yaml", (OTHER,))
    assert builds_of(twice, tmp_path)[-2:] == (NEW, OTHER)
    assert twice.startswith(once)
    assert once.startswith(shipped.rpartition("builds:")[0])


def test_file_that_would_become_too_large_is_refused() -> None:
    text = f"{HEAD}# {'x' * (LIMIT_BYTES - 100)}\n"
    with pytest.raises(SourceError, match=f"expected at most {LIMIT_BYTES} bytes"):
        with_builds(text, "kernels.yaml", (NEW,))


LINE = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, blacklist_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=200
)


@given(
    release=LINE,
    note=LINE,
    where=st.sampled_from([HEAD, f"{HEAD}builds: []\n", f"builds:\n  - {ITEM}a note\n{HEAD}", PLACES[-3].replace("@", "")]),
)
def test_whatever_a_build_says_is_read_again_as_it_is(release: str, note: str, where: str) -> None:
    build = NEW.model_copy(update={"release": release, "note": note})
    data = parse_yaml(with_builds(where, "kernels.yaml", (build,)), "kernels.yaml").data
    assert isinstance(data, dict)
    builds = data["builds"]
    assert isinstance(builds, list)
    assert builds[-1] == build.model_dump(mode="json", exclude_none=True)
