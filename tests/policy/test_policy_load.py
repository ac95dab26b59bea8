"""The rulebook from files: what is bad is refused with its line, in an operator's words; a bad waiver falls out alone.

In the files below, the line to blame ends in `# <-`.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exitguard import resources
from exitguard.policy.load import PolicyError, load_rulebook, load_waivers
from exitguard.policy.problem import MAX_MESSAGE_CHARACTERS, MAX_PROBLEMS, Problem
from exitguard.policy.yaml_source import LIMIT_BYTES

Write = Callable[..., Path]

RULE = """\
  - id: SITE-RULE
    severity: low
    title: a title
    rationale: a reason
    subject: domain
    check: pmu_live
"""
POLICY = f"kind: policy\nschema_version: 1\nid: site\nversion: '1'\ntitle: a policy\nrules:\n{RULE}"
LINEAGE = """\
  - id: a-lineage
    release: '6\\..*'
    state: affected
    provenance: inference
    note: a note
"""
KERNELS = f"kind: kernels\nschema_version: 1\nchangelog_markers: []\nlineages:\n{LINEAGE}"
BUILD = """\
builds:
  - build_id: 0a1b2c3d4e5f60718293
    release: 6.1.0
    state: guarded
    provenance: source
    note: a note
"""
QEMU = """\
kind: qemu
schema_version: 1
lineages:
  - id: a-lineage
    package: ''
    clears_enable_pmu: true
    provenance: source
    note: a note
"""
COST = """\
  - id: a-cost
    saved_by: guard
    body: null
    guard: null
    vendor_path: svm
    mitigations: [low]
    cycles_per_exit: 5
    provenance: list
    note: a note
"""
COSTS = f"kind: costs\nschema_version: 1\ncosts:\n{COST}"
WAIVER = """\
  - id: CHG-1
    rules: [HOST-KERNEL-GUARD]
    scope:
      hosts: ['*']
    justification: the reboot is planned
    approver: somebody
    created: 2026-01-01T00:00:00Z
    expires: 2026-12-31T00:00:00+01:00
"""
RULE_IDS = ("HOST-KERNEL-GUARD", "DOM-PMU-LIVE")
WAIVERS = f"kind: waivers\nschema_version: 1\nwaivers:\n{WAIVER}"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def file(text: str, name: str = "given.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return file


def marked_line(text: str) -> int:
    (line,) = (number for number, content in enumerate(text.splitlines(), 1) if content.endswith("# <-"))
    return line


def policy_problems(*files: Path) -> tuple[Problem, ...]:
    with pytest.raises(PolicyError) as caught:
        load_rulebook(files)
    return caught.value.problems


@pytest.mark.parametrize("text", [POLICY, KERNELS, KERNELS + BUILD, QEMU, COSTS])
def test_good_file_is_accepted(write: Write, text: str) -> None:
    assert load_rulebook((write(text),))


def test_without_files_the_shipped_policy_applies() -> None:
    rulebook = load_rulebook()
    assert rulebook.policy.id == "pmu-off"
    assert rulebook.kernels.lineages
    assert rulebook.qemus.lineages
    assert rulebook.costs.costs
    assert (rulebook.waivers, rulebook.waiver_problems) == ((), ())


def test_given_policy_replaces_the_shipped_one_and_leaves_the_rest(write: Write) -> None:
    rulebook = load_rulebook((write(POLICY),))
    assert [rule.id for rule in rulebook.policy.rules] == ["SITE-RULE"]
    assert rulebook.kernels == load_rulebook().kernels


def test_each_given_kind_replaces_its_shipped_one(write: Write) -> None:
    files = tuple(write(text, f"{number}.yaml") for number, text in enumerate((KERNELS + BUILD, QEMU, COSTS)))
    rulebook = load_rulebook(files)
    assert [build.build_id for build in rulebook.kernels.builds] == ["0a1b2c3d4e5f60718293"]
    assert len(rulebook.qemus.lineages) == len(rulebook.costs.costs) == 1
    assert rulebook.policy == load_rulebook().policy


def test_two_policies_are_judged_together(write: Write) -> None:
    other = POLICY.replace("id: site", "id: other").replace("SITE-RULE", "OTHER-RULE").replace("'1'", "'2'")
    policy = load_rulebook((write(POLICY, "a.yaml"), write(other, "b.yaml"))).policy
    assert (policy.id, policy.version) == ("site+other", "1+2")
    assert [rule.id for rule in policy.rules] == ["SITE-RULE", "OTHER-RULE"]


@pytest.mark.parametrize(
    ("second", "path", "message"),
    [
        (POLICY.replace("id: site", "id: site # <-").replace("SITE-RULE", "OTHER-RULE"), "id", "found 'site', which is that of"),
        (
            POLICY.replace("id: site", "id: other").replace("SITE-RULE", "SITE-RULE # <-"),
            "rules[0].id",
            "found 'SITE-RULE', which is taken",
        ),
        (
            POLICY.replace("id: site", "id: other").replace("SITE-RULE", "OTHER-RULE") + "scope: {admit_tcg: true} # <-\n",
            "scope",
            "expected the scope of",
        ),
    ],
)
def test_two_policies_that_contradict_are_refused(write: Write, second: str, path: str, message: str) -> None:
    first, second_file = write(POLICY, "a.yaml"), write(second, "b.yaml")
    (problem,) = policy_problems(first, second_file)
    assert (problem.file, problem.line, problem.path) == (str(second_file), marked_line(second), path)
    assert message in problem.message
    assert str(first) in problem.message


@pytest.mark.parametrize(("text", "kind"), [(KERNELS, "kernels"), (QEMU, "qemu"), (COSTS, "costs")])
def test_second_file_of_a_kind_is_refused(write: Write, text: str, kind: str) -> None:
    (problem,) = policy_problems(write(text, "a.yaml"), write("\n" + text, "b.yaml"))
    assert (problem.line, problem.path) == (2, "kind")
    assert f"expected one file of kind {kind} at most" in problem.message


ADDITION = f"kind: kernels\nschema_version: 1\n{BUILD}"


def test_builds_alone_add_to_what_is_known_of_kernels(write: Write) -> None:
    shipped = load_rulebook().kernels
    other = ADDITION.replace("0a1b2c3d4e5f60718293", "ffff2c3d4e5f60718293")
    kernels = load_rulebook((write(ADDITION, "a.yaml"), write(other, "b.yaml"))).kernels
    assert (kernels.lineages, kernels.changelog_markers) == (shipped.lineages, shipped.changelog_markers)
    assert [build.build_id for build in kernels.builds[len(shipped.builds) :]] == ["0a1b2c3d4e5f60718293", "ffff2c3d4e5f60718293"]
    kernels = load_rulebook((write(other, "b.yaml"), write(KERNELS + BUILD, "whole.yaml"))).kernels
    assert [lineage.id for lineage in kernels.lineages] == ["a-lineage"]
    assert [build.build_id for build in kernels.builds] == ["0a1b2c3d4e5f60718293", "ffff2c3d4e5f60718293"]


def test_same_build_in_two_files_counts_once(write: Write) -> None:
    noted = ADDITION.replace("a note", "another note")
    builds = load_rulebook((write(KERNELS + BUILD, "whole.yaml"), write(noted, "b.yaml"))).kernels.builds
    assert [build.note for build in builds] == ["a note"]


def test_build_that_two_files_decide_otherwise_is_refused(write: Write) -> None:
    first, second = write(ADDITION, "a.yaml"), write(ADDITION.replace("state: guarded", "state: affected\n    body: A"), "b.yaml")
    (problem,) = policy_problems(first, second)
    assert (problem.file, problem.line, problem.path) == (str(second), 6, "builds[0].state")
    assert problem.message == f"expected guarded, which is what {first} says of this build, found affected, body A"


REFUSED = [
    # What a file is.
    ("# <-", "", "expected a mapping with the keys kind and schema_version, found nothing"),
    ("- a # <-", "", "found a list of 1"),
    ("text # <-", "", "found 'text'"),
    ("schema_version: 1 # <-", "kind", "expected one of policy, kernels, qemu, costs, found nothing"),
    ("schema_version: 1\nkind: polices # <-", "kind", "found 'polices'"),
    ("schema_version: 1\nkind: [policy] # <-", "kind", "found a list of 1"),
    ("schema_version: 1\nkind: waivers # <-", "kind", "this is a waiver file, give it as one"),
    (POLICY.replace("schema_version: 1", "schema_version: 2 # <-"), "schema_version", "expected 1, found the number 2"),
    (POLICY.replace("schema_version: 1", "schema_version: '1' # <-"), "schema_version", "expected 1, found '1'"),
    # Keys.
    (POLICY.replace("id: site", "# <-\nid: site").replace("# <-\n", "") + "titel: x # <-\n", "titel", "did you mean 'title'?"),
    (POLICY + "zzz: x # <-\n", "zzz", "expected one of kind, schema_version, id, version, title, scope, remedies, rules"),
    (POLICY.replace("severity: low", "severty: low # <-\n    severity: low"), "rules[0].severty", "did you mean 'severity'?"),
    (POLICY + "scope: {admit_tgc: true} # <-\n", "scope.admit_tgc", "did you mean 'admit_tcg'?"),
    (
        POLICY.replace("- id: SITE-RULE", "- id: SITE-RULE # <-").replace("    severity: low\n", ""),
        "rules[0].severity",
        "expected this key",
    ),
    (POLICY.replace("kind: policy", "kind: policy # <-").replace("title: a policy\n", ""), "title", "expected this key, found none"),
    # Values.
    (
        POLICY.replace("severity: low", "severity: hgih # <-"),
        "rules[0].severity",
        "expected 'high', 'medium', 'low' or 'info', found 'hgih'",
    ),
    (POLICY.replace("check: pmu_live", "check: pmu # <-"), "rules[0].check", "'pmu_live'"),
    (POLICY.replace("version: '1'", "version: 1 # <-"), "version", "expected text, found the number 1: write it in quotes"),
    (POLICY.replace("version: '1'", "version: true # <-"), "version", "expected text, found true: write it in quotes"),
    (POLICY.replace("version: '1'", "version: # <-"), "version", "expected text, found nothing"),
    (POLICY.replace("version: '1'", "version: '' # <-"), "version", "expected at least 1 character"),
    (POLICY.replace("id: site", "id: Site # <-"), "id", "expected small letters, digits and '-', such as pmu-off, found 'Site'"),
    (POLICY.replace("id: SITE-RULE", "id: site_rule # <-"), "rules[0].id", "such as HOST-KERNEL-GUARD, found 'site_rule'"),
    (POLICY.replace("title: a title", 'title: "a\\ntitle" # <-'), "rules[0].title", "one line of text without control characters"),
    (POLICY.replace("title: a title", f"title: {'x' * 121} # <-"), "rules[0].title", "expected at most 120 characters, found 'xxx"),
    (POLICY.replace(f"rules:\n{RULE}", "rules: [] # <-\n"), "rules", "expected a list of at least 1, found a list of 0"),
    (POLICY.replace(f"rules:\n{RULE}", "rules: {a: 1} # <-\n"), "rules", "expected a list, found a mapping with the keys a"),
    (POLICY.replace(f"rules:\n{RULE}", "rules: [x] # <-\n"), "rules[0]", "expected a mapping, found 'x'"),
    (POLICY + "scope: off # <-\n", "scope", "expected a mapping, found 'off'"),
    (POLICY + "scope:\n  admit_tcg: on # <-\n", "scope.admit_tcg", "expected true or false, found 'on'"),
    (POLICY + "scope:\n  admit_tcg: 1 # <-\n", "scope.admit_tcg", "expected true or false, found the number 1"),
    (POLICY + "    remedy: reboot # <-\n", "rules[0].remedy", "'kernel_guard'"),
    (POLICY + "    references: [a, 5] # <-\n", "rules[0].references[1]", "expected text, found the number 5"),
    # One value against another.
    (
        POLICY.replace("subject: domain", "subject: host # <-"),
        "rules[0].subject",
        "expected 'domain', which check pmu_live judges, found 'host'",
    ),
    (POLICY + "    parameters: {required: [libvirt]} # <-\n", "rules[0].parameters", "check pmu_live takes no parameters"),
    (POLICY + RULE.replace("SITE-RULE", "SITE-RULE # <-"), "rules[1].id", "found 'SITE-RULE', which is taken by rules[0]"),
    # Lineages.
    (KERNELS.replace("'6\\..*'", "'(6' # <-"), "lineages[0].release", "'(6' is not a regular expression: missing )"),
    (KERNELS.replace("'6\\..*'", f"'{'x' * 501}' # <-"), "lineages[0].release", "expected at most 500 characters"),
    (KERNELS.replace("state: affected", "state: patched # <-"), "lineages[0].state", "'not_affected'"),
    (KERNELS.replace("state: affected", "state: equivalent\n    body: A # <-"), "lineages[0].body", "expected null"),
    (KERNELS.replace("state: affected", "state: affected\n    body: C # <-"), "lineages[0].body", "expected 'A' or 'B', found 'C'"),
    (KERNELS + "    since: 6 # <-\n", "lineages[0].since", "expected text, found the number 6: write it in quotes"),
    (KERNELS + "    since: six # <-\n", "lineages[0].since", "expected a version in quotes, such as '6.9', found 'six'"),
    (KERNELS + "    since: '6.10'\n    before: '6.9' # <-\n", "lineages[0].before", "later than since ('6.10'), found '6.9'"),
    (KERNELS + "    since: '6.9'\n    before: '6.9.0' # <-\n", "lineages[0].before", "later than since"),
    ("kind: kernels # <-\nschema_version: 1\nlineages: []\n", "changelog_markers", "expected this key beside lineages, found none"),
    ("kind: kernels # <-\nschema_version: 1\nchangelog_markers: []\n", "lineages", "a file that only adds builds has neither"),
    (KERNELS + LINEAGE.replace("a-lineage", "a-lineage # <-"), "lineages[1].id", "which is taken by lineages[0]"),
    (KERNELS + BUILD.replace("0a1b2c3d4e5f60718293", "0A1B2C3D4E5F60718293 # <-"), "builds[0].build_id", "small hexadecimal digits"),
    (KERNELS + BUILD.replace("0a1b2c3d4e5f60718293", "01234567890123456789 # <-").replace(": 0", ": 1"), "builds[0].build_id", "quote it"),
    (KERNELS + BUILD.replace("state: guarded", "state: not_affected\n    body: B # <-"), "builds[0].body", "expected null"),
    (
        KERNELS + BUILD + BUILD.removeprefix("builds:\n").replace("60718293", "60718293 # <-"),
        "builds[1].build_id",
        "which is taken by builds[0]",
    ),
    (QEMU.replace("true", "yes # <-"), "lineages[0].clears_enable_pmu", "expected true or false, found 'yes'"),
    (QEMU.replace("package: ''", "package: # <-"), "lineages[0].package", "expected text, found nothing"),
    (QEMU + "    since: '11'\n    before: '10.2' # <-\n", "lineages[0].before", "later than since"),
    (QEMU + QEMU.partition("lineages:\n")[2].replace("a-lineage", "a-lineage # <-"), "lineages[1].id", "which is taken by lineages[0]"),
    # Costs.
    (COSTS.replace("- id: a-cost", "- id: a-cost # <-") + "    instructions_per_exit: 5\n", "costs[0]", "they are different units"),
    (COSTS.replace("- id: a-cost", "- id: a-cost # <-").replace("    cycles_per_exit: 5\n", ""), "costs[0]", "either cycles_per_exit or"),
    (COSTS.replace("cycles_per_exit: 5", "cycles_per_exit: 5.5 # <-"), "costs[0].cycles_per_exit", "expected an integer, found '5.5'"),
    (COSTS.replace("guard: null", "guard: true # <-"), "costs[0].guard", "expected null: only a row saved by pmu_off says which"),
    (COSTS.replace("saved_by: guard", "saved_by: pmu_off").replace("guard: null", "guard: null # <-"), "costs[0].guard", "found null"),
    (COSTS.replace("[low]", "of # <-"), "costs[0].mitigations", "expected 'off' or 'auto' or a list, found 'of'"),
    (COSTS.replace("[low]", "[low, lwo] # <-"), "costs[0].mitigations[1]", "or 'low', found 'lwo'"),
    (COSTS + COST.replace("a-cost", "a-cost # <-"), "costs[1].id", "which is taken by costs[0]"),
    # YAML.
    (POLICY + "id: again # <-\n", "id", "it first stands in line 3"),
    (POLICY + "scope: *x # <-\n", "scope", "found an alias ('*'): write the value out"),
    (POLICY + "scope: &x {} # <-\n", "scope", "found '&x'"),
]


@pytest.mark.parametrize(("text", "path", "message"), REFUSED)
def test_bad_policy_file_is_refused_with_its_line(write: Write, text: str, path: str, message: str) -> None:
    file = write(text)
    (problem,) = policy_problems(file)
    assert (problem.file, problem.line, problem.path) == (str(file), marked_line(text), path)
    assert message in problem.message


def test_all_problems_of_all_files_are_told_at_once_in_the_order_of_the_lines(write: Write) -> None:
    first = write(POLICY.replace("id: site", "id: Site").replace("severity: low", "severity: none") + "x: 1\n", "a.yaml")
    second = write("a: [", "b.yaml")
    assert [(Path(problem.file).name, problem.line) for problem in policy_problems(first, second)] == [
        ("a.yaml", 3),
        ("a.yaml", 8),
        ("a.yaml", 13),
        ("b.yaml", 1),
    ]


def test_text_of_the_error_is_one_line_a_problem(write: Write) -> None:
    file = write(POLICY.replace("id: site", "id: Site") + "x: 1\n")
    with pytest.raises(PolicyError) as caught:
        load_rulebook((file,))
    assert str(caught.value).splitlines() == [problem.sentence for problem in caught.value.problems]
    assert str(caught.value).startswith(f"{file}:3: id: expected small letters")


def test_number_and_length_of_problems_are_bounded(write: Write) -> None:
    problems = policy_problems(write(POLICY.replace(RULE, f"  - {'x' * 2_000}\n" * 500)))
    assert len(problems) == MAX_PROBLEMS + 1
    assert all(len(problem.message) <= MAX_MESSAGE_CHARACTERS for problem in problems)


def test_hostile_text_is_shown_escaped(write: Write) -> None:
    (problem,) = policy_problems(write(POLICY.replace("id: site", 'id: "\\e[31mred\\u202e"')))
    assert problem.sentence.isprintable()
    assert "\\x1b[31mred" in problem.message


def unreadable_files(folder: Path) -> dict[str, Path]:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "large").write_bytes(b"#" * (LIMIT_BYTES + 1))
    (folder / "binary").write_bytes(b"# text\n# more\nid: \xff\n")
    files = {name: folder / name for name in ("missing", "folder", "fifo", "loop", "large", "binary")}
    return {**files, "device": Path("/dev/zero"), "nul": folder / "a\0b", "not a folder": folder / "large" / "x"}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("missing", None, "expected a file, found none"),
        ("folder", None, "expected a regular file, found a directory"),
        ("fifo", None, "expected a regular file, found a device, a pipe or a socket"),
        ("device", None, "expected a regular file, found a device, a pipe or a socket"),
        ("loop", None, "cannot be read: too many levels of symbolic links"),
        ("large", None, f"expected at most {LIMIT_BYTES} bytes, found more"),
        ("binary", 3, "expected text in UTF-8, found the byte 0xff"),
        ("nul", None, "embedded null byte"),
        ("not a folder", None, "cannot be read: not a directory"),
    ],
)
def test_file_that_cannot_be_read_is_refused_without_waiting(tmp_path: Path, name: str, line: int | None, message: str) -> None:
    file = unreadable_files(tmp_path)[name]
    (problem,) = policy_problems(file)
    assert (problem.file, problem.line, problem.path, problem.message) == (str(file), line, "", message)


def test_forbidden_file_says_who_may_not_read_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(POLICY)
    real_open = os.open

    def refusing_open(path: Path, flags: int) -> int:  # as the kernel does for a user who is not root
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", refusing_open)
    (problem,) = policy_problems(file)
    assert problem.message == f"permission denied: let user id {os.geteuid()} read it, or run as root"


def test_link_to_a_policy_is_followed(write: Write, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(write(POLICY))
    assert load_rulebook((tmp_path / "link",)).policy.id == "site"


def test_missing_shipped_policy_says_where_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    (problem,) = policy_problems()
    assert f"expected them in {tmp_path / 'policies'}" in problem.message


REFUSED_WAIVERS = [
    (WAIVER.replace("id: CHG-1", "id: 'CHG 1' # <-"), "waivers[0].id", "such as CHG-1234, found 'CHG 1'"),
    (WAIVER.replace("[HOST-KERNEL-GUARD]", "[] # <-"), "waivers[0].rules", "expected a list of at least 1, found a list of 0"),
    (WAIVER.replace("[HOST-KERNEL-GUARD]", "['*'] # <-"), "waivers[0].rules[0]", "found '*'"),
    (
        WAIVER.replace("scope:", "scope: # <-").replace("hosts: ['*']", "hosts: []"),
        "waivers[0].scope",
        "an empty scope would waive everything",
    ),
    (WAIVER.replace("['*']", "'*' # <-"), "waivers[0].scope.hosts", "expected a list, found '*'"),
    (WAIVER.replace("['*']", "[''] # <-"), "waivers[0].scope.hosts[0]", "expected at least 1 character"),
    (WAIVER.replace("the reboot is planned", "later # <-"), "waivers[0].justification", "expected at least 10 characters, found 'later'"),
    (WAIVER.replace("- id: CHG-1", "- id: CHG-1 # <-").replace("    approver: somebody\n", ""), "waivers[0].approver", "expected this key"),
    (
        WAIVER.replace("2026-01-01T00:00:00Z", "2026-01-01 # <-"),
        "waivers[0].created",
        "'2026-01-01' is not an RFC 3339 time with an offset, such as 2026-01-31T00:00:00Z",
    ),
    (WAIVER.replace("2026-12-31T00:00:00+01:00", "2026-12-31 # <-"), "waivers[0].expires", "is not an RFC 3339 time with an offset"),
    (WAIVER.replace("2026-12-31T00:00:00+01:00", "2026-12-31T00:00:00 # <-"), "waivers[0].expires", "is not an RFC 3339 time"),
    (WAIVER.replace("2026-12-31T00:00:00+01:00", "2026-02-30T00:00:00Z # <-"), "waivers[0].expires", "is not a time that exists"),
    (WAIVER.replace("2026-12-31T00:00:00+01:00", "20261231 # <-"), "waivers[0].expires", "found the number 20261231"),
    (WAIVER.replace("2026-12-31T00:00:00+01:00", "2026-01-01T01:00:00+01:00 # <-"), "waivers[0].expires", "later than created"),
    (WAIVER + "    until: never # <-\n", "waivers[0].until", "this key is unknown"),
    ("  - CHG-1 # <-\n", "waivers[0]", "expected a mapping, found 'CHG-1'"),
    ("  - null # <-\n", "waivers[0]", "expected a mapping, found nothing"),
]


@pytest.mark.parametrize(("entry", "path", "message"), REFUSED_WAIVERS)
def test_malformed_waiver_is_left_out_alone(write: Write, entry: str, path: str, message: str) -> None:
    good = WAIVER.replace("CHG-1", "CHG-2")
    text = f"kind: waivers\nschema_version: 1\nwaivers:\n{entry}{good}"
    file = write(text)
    waivers, (problem,) = load_waivers((file,), rule_ids=RULE_IDS)
    assert [waiver.id for waiver in waivers] == ["CHG-2"]
    assert (problem.file, problem.line, problem.path) == (str(file), marked_line(text), path)
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("# <-", "", "found nothing"),
        (POLICY.replace("kind: policy", "kind: policy # <-"), "kind", "expected 'waivers', found 'policy'"),
        (WAIVERS.replace("schema_version: 1", "schema_version: 2 # <-"), "schema_version", "expected 1, found the number 2"),
        (WAIVERS + "scope: all # <-\n", "scope", "this key is unknown"),
        ("kind: waivers\nschema_version: 1\nwaivers: all # <-\n", "waivers", "expected a list, found 'all'"),
        ("kind: waivers\nschema_version: 1\nwaivers: # <-\n", "waivers", "expected a list, found nothing"),
        (WAIVERS + "    id: CHG-2 # <-\n", "waivers[0].id", "it first stands in line 4"),
        (WAIVERS + "] # <-", "", "not YAML"),
    ],
)
def test_file_that_is_no_waiver_file_waives_nothing_and_takes_no_other_with_it(write: Write, text: str, path: str, message: str) -> None:
    bad, good = write(text, "bad.yaml"), write(WAIVERS, "good.yaml")
    waivers, (problem,) = load_waivers((bad, good), rule_ids=RULE_IDS)
    assert [waiver.id for waiver in waivers] == ["CHG-1"]
    assert (problem.file, problem.line, problem.path) == (str(bad), marked_line(text), path)
    assert message in problem.message


def test_waiver_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    waivers, (problem,) = load_waivers((tmp_path / "missing.yaml",), rule_ids=RULE_IDS)
    assert waivers == ()
    assert problem.message == "expected a file, found none"


def test_waiver_file_without_waivers_is_good(write: Write) -> None:
    assert load_waivers((write("kind: waivers\nschema_version: 1\n"),), rule_ids=RULE_IDS) == ((), ())


def test_of_two_waivers_with_one_id_the_first_stands(write: Write) -> None:
    first = write(WAIVERS, "a.yaml")
    second = write(WAIVERS.replace("somebody", "somebody else"), "b.yaml")
    (waiver,), (problem,) = load_waivers((first, second), rule_ids=RULE_IDS)
    assert waiver.approver == "somebody"
    assert (problem.file, problem.line, problem.path) == (str(second), 4, "waivers[0].id")
    assert f"which is taken in {first}:4" in problem.message


def test_bad_waivers_do_not_stop_the_rulebook(write: Write) -> None:
    rulebook = load_rulebook(waiver_files=(write(WAIVERS + "  - CHG-2\n"),))
    assert [waiver.id for waiver in rulebook.waivers] == ["CHG-1"]
    assert [problem.path for problem in rulebook.waiver_problems] == ["waivers[1]"]


@pytest.mark.parametrize(
    ("rules", "path", "message"),
    [
        ("[HOST-KERNEL-GARD] # <-", "rules[0]", "found 'HOST-KERNEL-GARD': did you mean 'HOST-KERNEL-GUARD'?"),
        ("[DOM-PMU-LIVE, ZZZ-ZZZ] # <-", "rules[1]", "found 'ZZZ-ZZZ': `exitguard policy show` lists them"),
    ],
)
def test_waiver_for_a_rule_that_the_policy_does_not_have_is_left_out_alone(write: Write, rules: str, path: str, message: str) -> None:
    text = WAIVERS.replace("[HOST-KERNEL-GUARD]", rules) + WAIVER.replace("CHG-1", "CHG-2")
    waivers, (problem,) = load_waivers((write(text),), rule_ids=RULE_IDS)
    assert [waiver.id for waiver in waivers] == ["CHG-2"]
    assert (problem.line, problem.path) == (marked_line(text), f"waivers[0].{path}")
    assert message in problem.message


def test_rulebook_takes_waivers_for_the_rules_of_its_own_policy_only(write: Write) -> None:
    waivers = write(WAIVERS, "waivers.yaml")
    assert load_rulebook(waiver_files=(waivers,)).waiver_problems == ()
    rulebook = load_rulebook((write(POLICY),), (waivers,))
    assert rulebook.waivers == ()
    assert [problem.path for problem in rulebook.waiver_problems] == ["waivers[0].rules[0]"]


def test_expired_waiver_is_a_problem_only_for_who_asks_by_the_clock(write: Write) -> None:
    file = write(WAIVERS)
    end = datetime(2026, 12, 30, 23, tzinfo=UTC)
    assert len(load_waivers((file,), rule_ids=RULE_IDS)[0]) == 1
    assert load_waivers((file,), rule_ids=RULE_IDS, now=end - timedelta(seconds=1))[1] == ()
    waivers, (problem,) = load_waivers((file,), rule_ids=RULE_IDS, now=end)
    assert waivers == ()
    assert (problem.line, problem.path) == (11, "waivers[0].expires")
    assert problem.message.startswith("expired on 2026-12-30T23:00:00")
