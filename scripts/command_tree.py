"""The command line as data: every verb with its arguments, options, examples and exit codes, read from the commands themselves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from exitguard.cli.app import app
from exitguard.cli.examples import EXAMPLES

COMMAND = "exitguard"

#: What the help of a verb does not say of its exit code itself; 1 is an error, 64 wrong usage and 130 an interruption everywhere.
_JUDGES = "0 compliant, 2 not compliant, 3 unknown or stale."
_EXIT_CODES = {
    "audit": _JUDGES,
    "report": f"{_JUDGES} With `--format nagios`: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
    "nova audit": _JUDGES,
    "kernel inspect": "0 no kernel is affected, 2 one is, 3 none is and one is unknown.",
    "measure": "0 measured, 3 refused: the reason says what is missing.",
    "doctor": "0 every source could be read, 3 one could not.",
    "explain": "0 told, 3 with `--stored` where no audit was stored.",
    "rollback": "As of `exitguard apply`.",
    "rollout resume": "As of `exitguard apply`; 3 also where there has been no run.",
    "rollout status": "0 told, 3 where there has been no run.",
    "rollout pause": "0 asked for, 3 where there has been no run.",
    "rollout abort": "0 asked for, 3 where there has been no run.",
}
_OTHERS = "0 done."
EVERYWHERE = "1 error, 64 wrong usage, 130 interrupted."

#: How Typer spells the type of a value, and what people call it.
_TYPES = {"int": "N", "int range": "N", "float": "X", "float range": "X", "str": "TEXT", "Path": "PATH"}
_TYPE = re.compile(r"<(?:list\[)?(?P<of>.*?)\]?>")


@dataclass(frozen=True)
class Argument:
    """A positional value; `name` without the marks for optional and repeated."""

    name: str
    what: str
    required: bool
    repeated: bool

    @property
    def usage(self) -> str:
        """`FILE`, `[FILE]` or `[FILE...]`."""
        name = f"{self.name}..." if self.repeated else self.name
        return name if self.required else f"[{name}]"


@dataclass(frozen=True)
class Choice:
    """An option: its spellings, the word for its value ("" for a switch), its default ("" for none) and its range ("" for any)."""

    spellings: tuple[str, ...]
    value: str
    what: str
    default: str
    allowed: str


@dataclass(frozen=True)
class Verb:
    """One verb, a group of verbs, or the command itself, whose `words` are empty."""

    words: tuple[str, ...]
    summary: str
    #: Paragraphs; the first begins with the summary.
    description: tuple[str, ...]
    arguments: tuple[Argument, ...]
    options: tuple[Choice, ...]
    examples: tuple[str, ...]
    exit_codes: str
    #: The words of those below a group.
    verbs: tuple[tuple[str, ...], ...]

    @property
    def line(self) -> str:
        """`exitguard nova audit`."""
        return " ".join((COMMAND, *self.words))

    @property
    def usage(self) -> str:
        """What can follow, as in a synopsis."""
        if self.verbs:
            return "[OPTIONS] COMMAND ..."
        return " ".join(["[OPTIONS]", *(argument.usage for argument in self.arguments)])


def verbs() -> Iterator[Verb]:
    """All of them, a group before those in it, in the order of the help."""
    command = typer.main.get_command(app)
    yield from _below(command, _context(command, COMMAND, None), ())


def _below(command: Any, context: Any, words: tuple[str, ...]) -> Iterator[Verb]:
    inner = {name: command.get_command(context, name) for name in command.list_commands(context)} if hasattr(command, "commands") else {}
    yield _verb(command, context, words, tuple((*words, name) for name in inner))
    for name, one in inner.items():
        yield from _below(one, _context(one, name, context), (*words, name))


def _context(command: Any, name: str, parent: Any) -> Any:
    """What a command line without arguments would make of the command, where it were allowed. Nothing is run."""
    return command.make_context(name, [], parent=parent, resilient_parsing=True)


def _verb(command: Any, context: Any, words: tuple[str, ...], inner: tuple[tuple[str, ...], ...]) -> Verb:
    shown = [parameter for parameter in command.get_params(context) if not parameter.hidden]
    paragraphs = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
    own = " ".join(paragraph for paragraph in paragraphs if paragraph.startswith("Exit code"))
    verb = " ".join(words)
    return Verb(
        words=words,
        summary=re.split(r"(?<=[.])\s", paragraphs[0], maxsplit=1)[0].removesuffix("."),
        description=tuple(paragraph for paragraph in paragraphs if not paragraph.startswith("Exit code")),
        arguments=tuple(_argument(parameter) for parameter in shown if parameter.param_type_name == "argument"),
        options=tuple(_choice(parameter, context) for parameter in shown if parameter.param_type_name == "option"),
        examples=EXAMPLES[verb],
        exit_codes=own or (f"{_JUDGES} A verb that judges nothing: {_OTHERS}" if not words else _EXIT_CODES.get(verb, _OTHERS)),
        verbs=inner,
    )


def _argument(parameter: Any) -> Argument:
    name = (parameter.metavar or parameter.name).replace("...", "").strip("[]{}")
    return Argument(name=name.upper(), what=parameter.help or "", required=parameter.required, repeated=parameter.nargs == -1)


def _choice(parameter: Any, context: Any) -> Choice:
    spelt, text = parameter.get_help_record(context)
    what, _, extra = text.partition("  [")
    marks = extra.removesuffix("]").split("; ") if extra else []
    default = next((mark.removeprefix("default: ") for mark in marks if mark.startswith("default: ")), "")
    spellings = [*parameter.opts, *parameter.secondary_opts]
    value = "" if parameter.is_flag else spelt.split(" ")[-1] if "<" not in spelt else spelt[spelt.index("<") :]
    typed = _TYPE.fullmatch(value)
    return Choice(
        spellings=tuple(sorted(spellings, key=lambda spelling: spelling.startswith("--"))),
        value=_TYPES.get(typed["of"], typed["of"]) if typed else value,
        what=what,
        default=default,
        allowed=", ".join(mark for mark in marks if not mark.startswith("default: ")),
    )
