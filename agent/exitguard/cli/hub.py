"""`exitguard hub`: what a fleet's hosts push to and operators ask; and who is let in."""

import os
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from exitguard.cli.fleet import refuse_password_in_url
from exitguard.cli.log import configure_logging
from exitguard.cli.options import some_text
from exitguard.cli.output import note, write_result
from exitguard.cli.refusal import Refusal

if TYPE_CHECKING:
    from exitguard.store.hub import HubRetention, HubStore

app = typer.Typer(help="The hub of a fleet: hosts push to it what they observe.", no_args_is_help=True, rich_markup_mode=None)
host_app = typer.Typer(help="The hosts that may push to the hub.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(host_app, name="host")

_EXIT_ERROR = 1
_VARIABLE = "EXITGUARD_HUB_DATABASE"
_LISTEN = re.compile(r"(\[[0-9a-fA-F:]+\]|[0-9.]+|localhost):([0-9]{1,5})", re.ASCII)
_LARGEST_PORT = 65535


class TokenRole(StrEnum):
    """model.hub.Role, without what that imports."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL|FILE",
        parser=some_text,
        help=f"postgresql://USER@HOST/NAME, or the path of a SQLite file. Default: ${_VARIABLE}. Passwords belong there or in ~/.pgpass.",
    ),
]


@app.command()
def serve(
    context: typer.Context,
    *,
    database: DatabaseOption = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS:PORT", parser=some_text, help="Where a proxy that speaks TLS finds the hub.")
    ] = "127.0.0.1:8470",
    history_days: Annotated[int, typer.Option("--history-days", min=1, max=3650, help="How long reports and changes are kept.")] = 400,
    samples_days: Annotated[int, typer.Option("--samples-days", min=1, max=3650, help="How long samples are kept.")] = 7,
    ledger_days: Annotated[int, typer.Option("--ledger-days", min=2, max=3650, help="How long rows of the ledger are kept.")] = 400,
) -> None:
    """Take what hosts push and answer operators, in the foreground, until SIGTERM. Several may share one PostgreSQL."""
    match = _LISTEN.fullmatch(listen)
    if match is None or int(match[2]) > _LARGEST_PORT:
        raise typer.BadParameter("expected an address in digits and a port, such as 127.0.0.1:8470", param_hint="--listen")
    configure_logging(context.obj, os.environ)

    from exitguard.store.hub import HubRetention

    retention = HubRetention(history_days, samples_days, ledger_days)
    with _opened(database, retention) as store:
        from exitguard.fleet.hub.web import serve as serve_http

        note([f"exitguard hub: {store.name} at http://{listen}"])
        serve_http(store, match[1].strip("[]"), int(match[2]))


@app.command()
def enrolment(
    *,
    name: Annotated[str, typer.Option("--name", parser=some_text, help="By what to revoke it, and what the audit log calls it.")],
    hosts: Annotated[int, typer.Option("--hosts", min=1, max=1_000_000, help="How many hosts it lets in.")] = 1,
    hours: Annotated[int, typer.Option("--hours", min=1, max=8760, help="For how long it lets hosts in.")] = 24,
    revoke: Annotated[bool, typer.Option("--revoke", help="Instead: the secret of that name no longer counts.")] = False,
    database: DatabaseOption = None,
) -> None:
    """Print a new secret that lets hosts in. Each gives it to the hub once, for a key of its own (hub_enrolment_file in its settings)."""
    from exitguard.fleet.keys import enrolment_sha256, new_enrolment_secret
    from exitguard.store.hub_access import add_enrolment, revoke_enrolment

    now = datetime.now(UTC)
    with _opened(database) as store, store.writing() as connection:
        if revoke:
            if not revoke_enrolment(connection, name, now):
                raise Refusal(f"exitguard hub: there is no enrolment secret {name!r} that counts.", code=_EXIT_ERROR)
            return
        secret = new_enrolment_secret()
        expires_at = now + timedelta(hours=hours)
        secret_sha256 = str(enrolment_sha256(secret))
        if not add_enrolment(connection, secret_sha256=secret_sha256, name=name, now=now, expires_at=expires_at, hosts=hosts):
            raise Refusal(f"exitguard hub: there is, or was, an enrolment secret {name!r}: choose another --name.", code=_EXIT_ERROR)
    note([f"It lets in {hosts} hosts until {expires_at:%Y-%m-%d %H:%M} UTC, and is not shown again."])
    write_result(f"{secret}\n", None)


@app.command()
def token(
    *,
    name: Annotated[str, typer.Option("--name", parser=some_text, help="Whom it is for: the audit log calls them so.")],
    role: Annotated[
        TokenRole, typer.Option("--role", help="viewer reads, operator may shut hosts out, approver may approve what changes hosts.")
    ] = TokenRole.VIEWER,
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="For how long it counts.")] = 90,
    revoke: Annotated[bool, typer.Option("--revoke", help="Instead: the tokens of that name no longer count.")] = False,
    database: DatabaseOption = None,
) -> None:
    """Print a new token for an operator, or for a program that reads the hub."""
    from exitguard.fleet.keys import new_operator_token, sha256_of
    from exitguard.model.hub import Role
    from exitguard.store.hub_access import Operator, add_token, revoke_tokens

    now = datetime.now(UTC)
    with _opened(database) as store, store.writing() as connection:
        if revoke:
            if not revoke_tokens(connection, name, now):
                raise Refusal(f"exitguard hub: there is no token {name!r} that counts.", code=_EXIT_ERROR)
            return
        made = new_operator_token()
        expires_at = now + timedelta(days=days)
        add_token(connection, Operator(made.token_id, name, Role(role)), sha256_of(made.secret), now, expires_at)
    note([f"It counts for {name} as {role} until {expires_at:%Y-%m-%d} UTC, and is not shown again."])
    write_result(f"{made.text}\n", None)


@host_app.callback()
def host() -> None:
    """Keep `revoke` a verb of its own while it is the only one."""


@host_app.command()
def revoke(
    host_id: Annotated[str, typer.Argument(metavar="HOST_ID", parser=some_text, help="As `exitguard report` and /v1/hosts tell it.")],
    *,
    database: DatabaseOption = None,
) -> None:
    """Shut a host out: its keys no longer count. What it said stays; an enrolment secret lets it in again."""
    from exitguard.store.hub_access import revoke_host

    with _opened(database) as store, store.writing() as connection:
        keys = revoke_host(connection, host_id, "console", datetime.now(UTC))
    if keys is None:
        raise Refusal(f"exitguard hub: host {host_id} was never let in: see /v1/hosts for those that were.", code=_EXIT_ERROR)
    note([f"{keys} {'key' if keys == 1 else 'keys'} of host {host_id} no longer {'counts' if keys == 1 else 'count'}."])


def _opened(database: str | None, retention: "HubRetention | None" = None) -> "HubStore":
    from importlib.util import find_spec

    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise Refusal("exitguard hub: the packages for a hub are not installed. Expected exitguard[hub]: install that.", code=_EXIT_ERROR)
    if database is not None:
        refuse_password_in_url(database, "--database", f"${_VARIABLE} or ~/.pgpass")
    named = database or os.environ.get(_VARIABLE)
    if not named:
        raise Refusal(f"exitguard hub: no database is named. Expected --database or ${_VARIABLE}.", code=_EXIT_ERROR)

    from exitguard.store.hub import HubStore

    return HubStore.open(named, retention)
