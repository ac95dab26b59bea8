"""`exitguard simulate`: a fleet that does not exist, for a hub that does."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.fleet import refuse_password_in_url, require_client
from exitguard.cli.log import configure_logging
from exitguard.cli.options import some_path, some_text
from exitguard.cli.output import note
from exitguard.cli.refusal import Refusal

if TYPE_CHECKING:
    from exitguard.simulation.over_http import HttpFleet
    from exitguard.simulation.pushes import Looks

_EXIT_ERROR = 1
_MOST_HOSTS = 1_000_000


def simulate(
    context: typer.Context,
    *,
    hosts: Annotated[int, typer.Option("--hosts", min=1, max=_MOST_HOSTS, help="How many.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed makes the same hosts.")] = 1,
    hub: Annotated[
        str | None, typer.Option("--hub", metavar="URL", parser=some_text, help="Push to this hub, each host with a key of its own.")
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            "--load",
            metavar="URL|FILE",
            parser=some_text,
            help="Instead: into this hub's database, as if the hub had heard of it at the time.",
        ),
    ] = None,
    enrolment_file: Annotated[
        Path | None,
        typer.Option("--enrolment-file", metavar="FILE", parser=some_path, help="With what `exitguard hub enrolment --hosts N` printed."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", parser=some_path, help="Where the hosts' keys are kept, so that a later run goes on."),
    ] = None,
    looks: Annotated[int, typer.Option("--looks", min=1, max=10_000, help="How often each host is looked at; the last time is --at.")] = 1,
    from_look: Annotated[int, typer.Option("--from-look", min=0, help="Leave out so many looks: an earlier run pushed them.")] = 0,
    interval_minutes: Annotated[int, typer.Option("--interval-minutes", min=1, max=10_080, help="The time between two looks.")] = 60,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", parser=some_text, help="The time of the last look. Default: now.")
    ] = None,
    domains: Annotated[int, typer.Option("--domains", min=0, max=150, help="Domains of a host, in the mean.")] = 30,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Threads that push, or processes that load.")] = 4,
) -> None:
    """Simulate a fleet: its hosts' facts are made up, and judged, pushed and kept as real ones are.

    Hosts are named sim-..., and a database with others in it is refused. The same seed makes the same hosts.
    """
    from exitguard.cli.report import time_of

    if (hub is None) is (load is None):
        raise typer.BadParameter("give either --hub or --load", param_hint="--hub")
    if load is not None:
        refuse_password_in_url(load, "--load", "~/.pgpass")
    if from_look >= looks:
        raise typer.BadParameter(f"expected less than the {looks} of --looks", param_hint="--from-look")
    last = time_of(at, "--at") or datetime.now(UTC)
    configure_logging(context.obj, os.environ)
    require_client()

    from exitguard.fleet.client import PushError
    from exitguard.policy.load import load_rulebook
    from exitguard.simulation.host import SimulatedHost
    from exitguard.simulation.keys import Keys, SimulationError
    from exitguard.simulation.over_http import HttpFleet
    from exitguard.simulation.pushes import Looks

    simulated = [SimulatedHost(seed, number, domains) for number in range(hosts)]
    times = tuple(last - timedelta(minutes=interval_minutes) * (looks - 1 - number) for number in range(looks))
    held = Keys(keys)
    rulebook = load_rulebook(())
    try:
        held.read()
        secret = _secret(enrolment_file, known=held.begun) if hub is not None else None
        held.make(simulated)
        if hub is not None:
            fleet = HttpFleet(hub.rstrip("/"), held, secret, workers)
            taken = _push(fleet, [Looks(host, rulebook) for host in simulated], times, from_look)
            note([f"exitguard simulate: {hosts:,} hosts at {hub}: {taken:,} records."])
        elif load is not None:
            from exitguard.simulation.into_database import load as into_database

            progress = _Progress(hosts)
            taken = into_database(load, simulated, held, rulebook, times, from_look=from_look, processes=workers, told=progress)
            note([f"exitguard simulate: {hosts:,} hosts in {load}: {taken:,} records."])
    except (SimulationError, PushError) as error:
        raise Refusal(f"exitguard simulate: {error}", code=_EXIT_ERROR) from error


def _push(fleet: "HttpFleet", looks: "list[Looks]", times: tuple[datetime, ...], from_look: int) -> int:
    if fleet.secret is not None:
        fleet.enrol([each.host for each in looks])
    taken = 0
    for number, moment in enumerate(times):
        if number < from_look:
            for each in looks:
                each.skip()
        else:
            taken += fleet.push(looks, moment, _Progress(len(looks)))
    return taken


def _secret(file: Path | None, *, known: bool) -> str | None:
    """What lets hosts in; None where an earlier run's keys do. Raises Refusal."""
    if file is None:
        if known:
            return None
        raise Refusal(
            "exitguard simulate: the hub lets hosts in by a secret. Expected --enrolment-file with what `exitguard hub enrolment --hosts "
            "N` printed, or --keys of an earlier run.",
            code=_EXIT_ERROR,
        )
    try:
        with file.open("rb") as opened:
            return opened.read(1024).decode("ascii", "replace").strip()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Refusal(
            f"exitguard simulate: {file}: {reason}. Expected the secret that `exitguard hub enrolment` printed.", code=_EXIT_ERROR
        ) from error


class _Progress:
    """A line on a terminal, nothing elsewhere."""

    def __init__(self, hosts: int) -> None:
        self._hosts = hosts
        self._done = 0
        self._shows = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __call__(self, count: int) -> None:
        self._done += count
        if self._shows:
            end = "\n" if self._done >= self._hosts else ""
            sys.stderr.write(f"\r{self._done:,} of {self._hosts:,} hosts{end}")
            sys.stderr.flush()
