"""A problem of a file that an operator wrote: where it is, what was expected and what was found."""

from exitguard.model.record import Record

#: More problems than this in one file are not news to anybody; the rest is counted.
MAX_PROBLEMS = 50
MAX_MESSAGE_CHARACTERS = 500


class Problem(Record):
    """One fault. `line` counts from 1, None where no line is to blame; `path` reads `rules[3].severity`, empty for the whole file."""

    file: str
    line: int | None
    path: str
    message: str

    @property
    def where(self) -> str:
        """`file:line`, as editors and compilers print it."""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    @property
    def sentence(self) -> str:
        """`file:line: path: message`."""
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class ProblemsError(Exception):
    """Files that nothing can run on; `problems` are all that were found. Its text is one line a problem."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(problem.sentence for problem in problems))
        self.problems = problems


def bounded_problems(problems: list[Problem]) -> tuple[Problem, ...]:
    """The first `MAX_PROBLEMS`, and one more that counts the rest."""
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    rest = Problem(file=problems[0].file, line=None, path="", message=f"and {len(problems) - MAX_PROBLEMS} more problems like these")
    return (*problems[:MAX_PROBLEMS], rest)


def bounded_message(text: str) -> str:
    """`text` in one line of at most `MAX_MESSAGE_CHARACTERS`, unprintable characters escaped."""
    shown = "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
    return shown if len(shown) <= MAX_MESSAGE_CHARACTERS else shown[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def path_text(path: tuple[str | int, ...]) -> str:
    """A path into a file's data for a reader: `("rules", 3, "severity")` is `rules[3].severity`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if part.replace("_", "").replace("-", "").isalnum() else repr(part))
    return bounded_message(text)
