"""YAML as the policy reads it: nothing is guessed, everything has its line, and hostile text ends in a SourceError."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exitguard.policy.problem import MAX_MESSAGE_CHARACTERS, MAX_PROBLEMS
from exitguard.policy.yaml_source import LIMIT_BYTES, LIMIT_DEPTH, LIMIT_VALUES, SourceError, YamlPath, YamlValue, parse_yaml


@pytest.fixture(params=["libyaml", "pure Python"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every claim of this file holds with either of PyYAML's parsers."""
    if request.param == "pure Python":
        monkeypatch.delattr(yaml, "CBaseLoader")


def data_of(text: str) -> YamlValue:
    return parse_yaml(text, "test.yaml").data


def refusals_of(text: str) -> list[tuple[int | None, str, str]]:
    with pytest.raises(SourceError) as caught:
        parse_yaml(text, "test.yaml")
    assert {problem.file for problem in caught.value.problems} == {"test.yaml"}
    return [(problem.line, problem.path, problem.message) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "word",
    [
        "off",
        "on",
        "yes",
        "no",
        "Off",
        "y",
        "n",
        "True",
        "FALSE",
        "Null",
        "~",
        "2026-01-31",
        "2026-01-31T00:00:00Z",
        "6.10",
        "1.0",
        "0x1F",
        "010",
        "0o17",
        "+5",
        "1_000",
        "1e5",
        ".5",
        ".inf",
        ".nan",
        "12:30:45",
        "<<",
        "--",
        "=",
        "null_",
        "1:7.2+dfsg",
    ],
)
def test_unquoted_number_that_is_no_plain_integer_stays_text(word: str) -> None:
    assert data_of(f"since: {word}") == {"since": word}


@pytest.mark.parametrize(
    ("written", "value"),
    [("true", True), ("false", False), ("null", None), ("", None), ("0", 0), ("-7", -7), ("15", 15), ("999999999999999", 10**15 - 1)],
)
def test_unquoted_word_that_means_something(written: str, value: YamlValue) -> None:
    read = data_of(f"key: {written}")
    assert read == {"key": value}
    assert isinstance(read, dict)
    assert type(read["key"]) is type(value)


@pytest.mark.parametrize("written", ["'true'", '"true"', "'5'", '"null"', "''", "|-\n  true", ">-\n  5"])
def test_quoted_or_block_text_stays_text(written: str) -> None:
    assert data_of(f"key: {written}") == {"key": yaml.safe_load(f"key: {written}")["key"]}


def test_keys_are_always_text() -> None:
    assert data_of("true: a\n5: b\nnull: c\non: d\n") == {"true": "a", "5": "b", "null": "c", "on": "d"}


def test_empty_document_is_null() -> None:
    assert data_of("") is None
    assert data_of("# only a comment\n") is None
    assert parse_yaml("", "test.yaml").lines == {(): 1}


def test_byte_order_mark_and_dos_line_ends_are_read() -> None:
    source = parse_yaml("\ufeffa: 1\r\nb:\r\n  - 2\r\n", "test.yaml")
    assert source.data == {"a": 1, "b": [2]}
    assert source.lines[("b", 0)] == 3


def test_every_value_has_the_line_of_its_key_or_item() -> None:
    text = "# first\nid: x\nrules:\n  - id: A\n    refs: [a,\n      b]\n  -\n    id: B\n    note: >-\n      long\n      text\n    last: 1\n"
    assert parse_yaml(text, "test.yaml").lines == {
        (): 2,
        ("id",): 2,
        ("rules",): 3,
        ("rules", 0): 4,
        ("rules", 0, "id"): 4,
        ("rules", 0, "refs"): 5,
        ("rules", 0, "refs", 0): 5,
        ("rules", 0, "refs", 1): 6,
        ("rules", 1): 8,
        ("rules", 1, "id"): 8,
        ("rules", 1, "note"): 9,
        ("rules", 1, "last"): 12,
    }


def test_problem_of_a_missing_value_points_at_what_should_hold_it() -> None:
    source = parse_yaml("a: 1\nrules:\n  - id: A\n", "test.yaml")
    problem = source.problem(("rules", 0, "severity", "x"), "expected this key")
    assert problem.sentence == "test.yaml:3: rules[0].severity.x: expected this key"


@pytest.mark.parametrize(
    ("text", "line", "path", "message"),
    [
        ("a: 1\nb: &anchor 2\n", 2, "b", "found '&anchor'"),
        ("a: 1\nb:\n  c: &anchor [1]\n", 3, "b.c", "found '&anchor'"),
        ("a: 1\n&anchor b: 2\n", 2, "b", "found '&anchor'"),
        ("- a\n- &anchor {a: 1}\n", 2, "[1]", "found '&anchor'"),
        ("a: 1\nb: !!str 2\n", 2, "b", "found 'tag:yaml.org,2002:str'"),
        ("a: 1\nb: !!python/object/apply:os.system [id]\n", 2, "b", "expected no tag"),
        ("a: 1\nb: ! 2\n", 2, "b", "found '!'"),
        ("a: 1\n!local b: 2\n", 2, "b", "found '!local'"),
        ("a: 1\nb: 2\na: 3\n", 3, "a", "it first stands in line 1"),
        ("l:\n  - x: 1\n    y: 2\n    x: [3]\n", 4, "l[0].x", "it first stands in line 2"),
        ("a: 1\n'a': 2\n", 2, "a", "it first stands in line 1"),
        ("a: 1\n---\nb: 2\n", 2, "", "expected one YAML document"),
        ("a: 1\n...\n---\nb: 2\n", 3, "", "expected one YAML document"),
        ("a: 1\n? [b]\n: 2\n", 2, "", "expected text as a key, found a list"),
        ("a:\n  ? {b: 1}\n  : 2\n", 2, "a", "expected text as a key, found a mapping"),
        ("a: 1\nb: 1234567890123456\n", 2, "b", "at most 15 digits"),
        ("a: 1\nb: -1234567890123456\n", 2, "b", "at most 15 digits"),
        ("a: 1\nb: [1\n", 3, "", "while parsing a flow sequence that begins in line 2"),
        ("a: 1\n\tb: 2\n", 2, "", "not YAML"),
        ("a: 1\nb: c: d\n", 2, "", "not YAML"),
        ("a: 1\nb: '\x01'\n", 2, "", "found the character U+0001"),
        ("ä: 1\nb: '\ud800'\n", 2, "", "found the character U+D800"),
        ("a: 1\nb: @x\n", 2, "", "not YAML"),
    ],
)
def test_refusal_names_line_path_and_what_was_found(text: str, line: int, path: str, message: str) -> None:
    ((found_line, found_path, found_message),) = refusals_of(text)
    assert (found_line, found_path) == (line, path)
    assert message in found_message


def test_alias_is_refused_beside_its_anchor() -> None:
    assert [refusal[:2] for refusal in refusals_of("a: &x 1\nb: *x\n")] == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("text", ["a: &x 1\n*x : b\n", "a: &x 1\n? *x\n: b\n"])
def test_alias_is_no_key(text: str) -> None:
    assert refusals_of(text)[-1] == (2, "", "expected text as a key, found an alias ('*')")


def test_all_refusals_of_a_file_are_told_at_once_and_before_what_hides_the_rest() -> None:
    text = "a: &x 1\nb: !t 2\na: 3\nc: [\n"
    assert [refusal[0] for refusal in refusals_of(text)] == [1, 2, 3, 5]


def test_number_of_refusals_is_bounded() -> None:
    refusals = refusals_of("".join(f"k{number}: !t x\n" for number in range(10_000)))
    assert len(refusals) == MAX_PROBLEMS + 1
    assert refusals[-1][2].startswith("and ")


def test_refusal_of_endless_text_is_bounded_and_printable() -> None:
    ((_, path, message),) = refusals_of(f'"{chr(0x85)}\\e[31m{"k" * 100_000}": !t{"x" * 100_000} 1')
    assert len(message) <= MAX_MESSAGE_CHARACTERS
    assert len(path) <= MAX_MESSAGE_CHARACTERS
    assert message.isprintable()
    assert path.isprintable()


def test_depth_is_bounded() -> None:
    assert data_of("[" * LIMIT_DEPTH + "]" * LIMIT_DEPTH) is not None
    assert refusals_of("\n" + "[" * (LIMIT_DEPTH + 1)) == [
        (2, "", f"expected at most {LIMIT_DEPTH} levels of lists and mappings, found more")
    ]


def test_size_is_bounded() -> None:
    assert data_of("#" * LIMIT_BYTES) is None
    assert refusals_of("#" * (LIMIT_BYTES + 1)) == [(None, "", f"expected at most {LIMIT_BYTES} bytes, found more")]
    assert refusals_of("#" + "ä" * (LIMIT_BYTES // 2)) == [(None, "", f"expected at most {LIMIT_BYTES} bytes, found more")]


def test_number_of_values_is_bounded() -> None:
    ((line, _, message),) = refusals_of("- a\n" * LIMIT_VALUES)  # the list itself is one value more
    assert (line, message) == (LIMIT_VALUES, f"expected at most {LIMIT_VALUES} values, found more")


class PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


scalars = (
    st.none() | st.booleans() | st.integers(-(10**15) + 1, 10**15 - 1) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20)


@given(value=values, flow=st.sampled_from([True, False, None]))
def test_what_a_yaml_writer_wrote_is_read_back(value: YamlValue, flow: bool | None) -> None:  # noqa: FBT001 - hypothesis passes by name
    assert data_of(yaml.dump(value, Dumper=PlainDumper, default_flow_style=flow, sort_keys=False)) == value


@given(value=values)
def test_every_path_of_the_data_and_no_other_has_a_line(value: YamlValue) -> None:
    text = yaml.dump(value, Dumper=PlainDumper, sort_keys=False)
    source = parse_yaml(text, "test.yaml")
    assert set(source.lines) == set(paths_of(value))
    assert all(1 <= line <= text.count("\n") + 1 for line in source.lines.values())


def paths_of(value: YamlValue, path: YamlPath = ()) -> list[YamlPath]:
    match value:
        case list():
            members: list[tuple[str | int, YamlValue]] = list(enumerate(value))
        case dict():
            members = list(value.items())
        case _:
            members = []
    return [path, *(inner for key, member in members for inner in paths_of(member, (*path, key)))]


@given(names=st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), unique=True, min_size=1), gap=st.integers(0, 3))
def test_line_of_a_key_is_where_it_was_written(names: list[str], gap: int) -> None:
    text = "".join("\n" * gap + f"{name}_: 1\n" for name in names)
    lines = parse_yaml(text, "test.yaml").lines
    assert [lines[(f"{name}_",)] for name in names] == [(gap + 1) * (index + 1) for index in range(len(names))]


yaml_like = st.lists(st.sampled_from([*"abc01:-?[]{},&*!|>'\"%@#~ \n\t\r", "- ", ": ", "? ", "\n  ", "---", "...", "\x00", "\u2028"])).map(
    "".join
)


@given(text=st.text() | yaml_like)
def test_any_text_is_read_or_refused(text: str) -> None:
    refused: SourceError | None = None
    try:
        parse_yaml(text, "test.yaml")
    except SourceError as error:
        refused = error
    assert refused is None or all(problem.message for problem in refused.problems)
