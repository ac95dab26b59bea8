"""The help of every verb ends with examples, which are real command lines and readable anywhere."""

import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from exitguard.cli.app import app
from exitguard.cli.edge import run as run_here
from exitguard.cli.examples import EXAMPLES

Run = Callable[..., subprocess.CompletedProcess[str]]

WIDTH = 80
#: As the help sets it off.
MARGIN = 4
#: A folder that an example names and that has to be there.
SYSROOT = "/srv/images/compute-17"


def tree(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    yield " ".join(words), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from tree(inner, (*words, name))


VERBS = dict(tree(typer.main.get_command(app)))
LINES = [(verb, line) for verb, lines in EXAMPLES.items() for line in lines]


def parse(arguments: list[str]) -> str:
    """The verb of a command line whose every word was accepted; nothing is run. Raises what the command line would."""
    command, context, words = VERBS[""], None, []
    name = "exitguard"
    while True:
        context = command.make_context(name, arguments, parent=context)
        if not hasattr(command, "commands"):
            return " ".join(words)
        # What a group leaves: the verb, and the verb's own arguments.
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        words.append(name)


def test_every_verb_has_examples_and_no_other_does() -> None:
    assert set(EXAMPLES) == set(VERBS)
    assert all(EXAMPLES.values())


@pytest.mark.parametrize(("verb", "line"), LINES, ids=[line for _, line in LINES])
def test_example_parses_and_is_of_its_verb(verb: str, line: str, tmp_path: Path) -> None:
    command, *arguments = shlex.split(line)
    assert command == "exitguard"
    parsed = parse([str(tmp_path) if word == SYSROOT else word for word in arguments])
    assert parsed == verb or (hasattr(VERBS[verb], "commands") and parsed.startswith(verb))


@pytest.mark.parametrize(
    "line", ["exitguard audit --fromat json", "exitguard report --only failed", "exitguard kernel look", "exitguard adit"]
)
def test_a_wrong_line_would_not_parse(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|not one of"):
        parse(shlex.split(line)[1:])


def test_no_example_is_there_twice_for_one_verb_or_too_long_for_its_help() -> None:
    for lines in EXAMPLES.values():
        assert len(set(lines)) == len(lines)
    assert [line for _, line in LINES if len(line) + MARGIN > WIDTH] == []


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("verb", ["", "report", "kernel", "kernel inspect", "nova report"])
def test_help_ends_with_whole_examples_in_any_width(exitguard: Run, verb: str, columns: str) -> None:
    result = exitguard(*verb.split(), "--help", env={"COLUMNS": columns})
    assert (result.returncode, result.stderr) == (0, "")
    block = "\n".join(["  Examples:", *(f"    {line}" for line in EXAMPLES[verb])])
    assert f"\n\n{block}\n" in result.stdout


@pytest.mark.parametrize(
    "variables",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}],
    ids=" ".join,
)
def test_help_is_the_same_on_any_terminal_and_in_a_pipe(exitguard: Run, variables: dict[str, str]) -> None:
    result = exitguard("report", "--help", env=variables)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == exitguard("report", "--help").stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_plain_ascii(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert run_here([*verb.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert told.isascii()
    assert all(character.isprintable() or character == "\n" for character in told)
    assert EXAMPLES[verb][0] in told


def test_exit_codes_follow_the_examples_of_the_command_itself(exitguard: Run) -> None:
    examples, told, codes = exitguard("--help").stdout.partition("\n\n  Exit codes:")
    assert told
    assert "Examples:" in examples
    assert "64" in codes
