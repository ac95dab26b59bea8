"""The command `exitguard`. `--version` answers before anything else is imported, since inventories ask every host for it."""

import sys

from exitguard import __version__

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> None:
    """Run the command line of this process and exit with its code."""
    arguments = sys.argv[1:]
    try:
        if arguments == ["--version"]:
            sys.exit(_print_version())
        if "daemon" in arguments:
            _ignore_reload()
        from exitguard.cli.edge import run

        sys.exit(run(arguments))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _ignore_reload() -> None:
    """A reload that is asked for before the daemon listens must not end it: SIGHUP would. An ignored signal stays ignored through exec."""
    import signal

    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _print_version() -> int:
    try:
        print(f"exitguard {__version__}", flush=True)  # noqa: T201 - nothing else is imported yet
    except OSError as error:
        sys.stdout = None  # so that the interpreter does not try once more when it ends
        return 0 if isinstance(error, BrokenPipeError) else 1
    return 0


if __name__ == "__main__":
    main()
