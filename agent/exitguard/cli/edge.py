"""The outer edge of the command line: every exit code and every last word on standard error is decided here."""

import os
import traceback
from collections.abc import Iterable, Sequence

import typer

from exitguard.cli.app import app
from exitguard.cli.output import OutputError, note, silence_stdout, unwritable_stdout
from exitguard.cli.refusal import Refusal

_EXIT_ERROR = 1
_EXIT_USAGE = 64  # EX_USAGE of sysexits.h; Typer's own is 2, which means "not compliant" here
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_BEFORE_THE_VERB = ("--debug", "--log-format", "--verbose", "-v")

#: What pydantic, with which Typer reads values, sets before the sentence of a ValueError.
_VALIDATORS_PREFIX = "Value error, "

#: Typer vendors Click or depends on it, by version; BadParameter is the public name that leads to both classes.
_UsageError: type[typer.BadParameter] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code. Whatever goes wrong is told on standard error in the operator's words."""
    try:
        outcome = typer.main.get_command(app)(args=list(arguments), prog_name="exitguard", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _EXIT_INTERRUPTED
    except _UsageError as error:
        note(_usage(error))
        return _EXIT_USAGE
    except Refusal as refusal:
        note(refusal.sentences)
        return refusal.code
    except SystemExit as end:  # Typer's own, where the reader of its help has gone
        silence_stdout()
        return end.code if isinstance(end.code, int) else _EXIT_ERROR
    except Exception as error:  # noqa: BLE001 - the outer edge
        if isinstance(error, OSError) and _raised_by_typer(error):
            silence_stdout()
            note(_sentences(unwritable_stdout(error)))
            return _EXIT_ERROR
        if "--debug" in arguments or os.environ.get("EXITGUARD_DEBUG"):
            traceback.print_exc()
        note(_sentences(error))
        return _EXIT_ERROR
    return outcome if isinstance(outcome, int) else 0


def _raised_by_typer(error: OSError) -> bool:
    """Whether Typer's own code failed: all that it reads or writes is the help, or a completion, on standard output."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return str(innermost.f_globals.get("__name__")).partition(".")[0] in {"typer", "click"}


def _usage(error: typer.BadParameter) -> Iterable[str]:
    error.message = error.message.removeprefix(_VALIDATORS_PREFIX)
    if error.ctx is None:
        return [f"exitguard: {error.format_message()}", "Try 'exitguard --help'."]
    if type(error).__name__ == "NoArgsIsHelpError":
        return error.ctx.get_help().split("\n")
    message = error.format_message()
    late = next((option for option in _BEFORE_THE_VERB if message.endswith((f" {option}", f" '{option}'", f" {option}."))), None)
    command = error.ctx.command_path
    hint = f"{late} stands before the verb: exitguard {late} ..." if late else f"Try '{command} --help'."
    return [f"{command}: {message}", hint]


def _sentences(error: Exception) -> Iterable[str]:
    """What went wrong, where, and what to do next."""
    from exitguard.policy.problem import ProblemsError
    from exitguard.resources import ResourcesError
    from exitguard.store.errors import StoreError

    match error:
        case ProblemsError():
            return [*(problem.sentence for problem in error.problems), "exitguard: nothing was done: correct this first."]
        case OutputError() | ResourcesError() | StoreError():
            return [f"exitguard: {error}"]
        case _:
            what = f"exitguard: unexpected {type(error).__name__}: {error}."
            return [f"{what} This is a defect of exitguard and says nothing about the host: run it with EXITGUARD_DEBUG=1 and report it."]
