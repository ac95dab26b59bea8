"""The agent's own settings: what each is, what it may be, and what an operator wants to know of it.

What is said here of each setting is the only source of deploy/config.yaml and docs/configuration.md (`make generate`). config.py
loads them.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from exitguard.policy.part import fault
from exitguard.policy.validation import shown

SYSTEM_CONFIG = Path("/etc/exitguard/config.yaml")
SYSTEM_STATE_DIR = Path("/var/lib/exitguard")
SYSTEM_REMEDY_DIR = Path("/var/lib/exitguard-remedy")
_DECIMAL = re.compile(r"[0-9]{1,6}\.[0-9]{1,6}")
_LISTEN = re.compile(r"(?P<host>[0-9.]+|\[::1\]):(?P<port>[1-9][0-9]{0,4})", re.ASCII)
_LARGEST_PORT = 65535
#: No user, no password, no query: the key is in a file.
_HUB_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(?::(?P<port>[1-9][0-9]{0,4}))?/?", re.ASCII)
#: Whatever stands between the first colon after the scheme and the last @; libxml2, which libvirt parses with, decodes %3A there.
_PASSWORD = re.compile(r"((?:[^:]*://)?+[^:]*?)(?::|%3a).*@", re.IGNORECASE | re.DOTALL)
#: The settings that the environment may overrule, and by which variable.
VARIABLES: Mapping[str, str] = {
    "state_dir": "EXITGUARD_STATE_DIR",
    "remedy_dir": "EXITGUARD_REMEDY_DIR",
    "connect": "EXITGUARD_CONNECT",
    "hub_url": "EXITGUARD_HUB_URL",
    "hub_token_file": "EXITGUARD_HUB_TOKEN_FILE",
}


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("expected an absolute path")
    return path


def _number(value: object) -> object:
    """policy/yaml_source.py leaves 2.5 as text, so that no version is read as a fraction; here a fraction is meant."""
    return float(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


def without_password(text: str) -> str:
    """`text` as it may be shown: where it holds a password as a URI would, `***` instead of that."""
    return _PASSWORD.sub(r"\1:***@", text, count=1)


def refuse_password(uri: str) -> str:
    """`uri` as it is. Raises ValueError, which does not show the password, for one that carries any.

    libvirt reads user:password as the name of the user: it logs in nowhere, and is in the arguments of ssh for all to see.
    """
    if _PASSWORD.match(uri) is None:
        return uri
    why = "libvirt would take it for a part of the user's name. Passwords belong in libvirt's auth.conf; an @ after the host is %40"
    raise ValueError(f"expected a libvirt URI without a password, found {shown(without_password(uri))}: {why}")


def _without_secret(value: object) -> object:
    """Comes before every other check of a URI, since those show what they refuse."""
    if isinstance(value, dict):
        raise fault((), "expected text, found a mapping")
    try:
        return refuse_password(value) if isinstance(value, str) else value
    except ValueError as error:
        raise fault((), str(error)) from None


def _libvirt_uri(uri: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s\x00-\x1f\x7f]*", uri):
        raise ValueError("expected a libvirt URI such as qemu:///system")
    return uri


def _loopback(listen: str) -> str:
    """Literals only: what a name such as localhost leads to is decided elsewhere, and may be changed there."""
    match = _LISTEN.fullmatch(listen)
    if match is None or int(match["port"]) > _LARGEST_PORT or not _is_loopback(match["host"].strip("[]")):
        raise ValueError('expected a loopback address and a port, such as 127.0.0.1:9478 or "[::1]:9478"')
    return listen


def _hub_url(url: str) -> str:
    """Without encryption only to this machine: the key goes with every request."""
    match = _HUB_URL.fullmatch(url)
    if (
        match is None
        or int(match["port"] or 1) > _LARGEST_PORT
        or (match["scheme"] == "http" and not _is_loopback(match["host"].strip("[]")))
    ):
        raise ValueError("expected https://HOST or https://HOST:PORT, or http:// with a loopback address in digits")
    return url.rstrip("/")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _textfile(path: Path) -> Path:
    if path.suffix != ".prom":  # node_exporter passes over every other file of its directory
        raise ValueError("expected a file name that ends in .prom")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


@dataclass(frozen=True)
class Guide:
    """What an operator wants to know of a setting beside what it is."""

    unit: str
    #: When to change it, and what that costs.
    why: str
    #: What it may be, beside the bounds of the field.
    allowed: str = ""
    #: What applies where it is not set, where that is more than the field's default.
    default: str = ""


class Settings(BaseModel):
    """config.yaml. An unknown key is an error, since a misspelt setting must not silently do nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Annotated[
        AbsolutePath,
        Guide(
            unit="path",
            why="Set it to keep them on another disk. Move the directory along, else the host begins a new history under a new host id; "
            "and restart the daemon, since a reload does not take it up.",
            allowed="an absolute path",
            default=f"{SYSTEM_STATE_DIR} (root, and the user who owns it); ~/.local/state/exitguard (others)",
        ),
    ] = Field(description="the directory of the agent's database and of the host's id")
    remedy_dir: Annotated[
        AbsolutePath | None,
        Guide(
            unit="path",
            why="Set it to keep the runs of remedies, their journals and approvals on another disk. Whoever may write there can "
            "approve plans.",
            allowed="an absolute path, or null",
            default=f"null ({SYSTEM_REMEDY_DIR} for root, remedy below state_dir for others)",
        ),
    ] = Field(default=None, description="the directory of the runs, plans and approvals of remedies")
    connect: Annotated[
        Annotated[str, Field(max_length=500), AfterValidator(_libvirt_uri)] | None,
        BeforeValidator(_without_secret),
        Guide(
            unit="URI",
            why="Set it where another libvirt than the system's is to be asked. Through a URI with a host name everything but libvirt is "
            "unknown: kernel, KVM and processes are seen on their own host only.",
            allowed="a libvirt URI without a password, or null",
            default="null (qemu:///system)",
        ),
    ] = Field(default=None, description="the libvirt to ask")
    policy_files: Annotated[
        tuple[AbsolutePath, ...],
        Guide(
            unit="paths",
            why="Set it to judge by a policy of your own. While one of the files is bad no audit starts, and a running daemon keeps the "
            "policy that it has.",
            allowed="a list of absolute paths",
            default="[] (what ships)",
        ),
    ] = Field(
        default=(),
        description="files with a policy, kernels, QEMU versions or costs; each replaces the shipped file of its kind, but files with "
        "nothing but kernel builds (`exitguard kernel inspect --save`), which add to it",
    )
    waiver_files: Annotated[
        tuple[AbsolutePath, ...],
        Guide(
            unit="paths",
            why="Set it to waive failures that somebody answers for, until a date. A malformed waiver is not applied, and is a finding.",
            allowed="a list of absolute paths",
        ),
    ] = Field(default=(), description="files with waivers")
    measurement_files: Annotated[
        tuple[AbsolutePath, ...],
        Guide(
            unit="paths",
            why="Set it where the cost matrix has nothing for this processor and kernel, or where your own figures are to count. What a "
            "host measured itself goes before what one of the same processor, mitigations and kernel did, and that before the matrix.",
            allowed="a list of absolute paths",
        ),
    ] = Field(default=(), description="files of `exitguard measure --format json`, of this host and of hosts like it")
    call_timeout_seconds: Annotated[
        float,
        BeforeValidator(_number),
        Field(ge=0.5, le=60),
        Guide(
            unit="seconds",
            why="Raise it where libvirt answers slowly under load and domains are reported as stuck that are not. An audit then waits that "
            "much longer for a domain that is.",
        ),
    ] = Field(default=5.0, description="how long one libvirt call may take before its domain counts as stuck")
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Guide(unit="word", why="Lower it to debug while looking for a fault; raise it to warning where the journal is short of room."),
    ] = Field(default="info", description="the least important message that the daemon logs")
    audit_interval_seconds: Annotated[
        int,
        Field(ge=15, le=43_200),
        Guide(
            unit="seconds",
            why="Shorten it to find changes of the kernel, of QEMU and of files sooner; every audit costs CPU time here and in libvirt. "
            "Domains that libvirt reports as changed are judged at once, whatever this is.",
        ),
    ] = Field(default=600, description="the time from one audit of the whole host to the next")
    sample_interval_seconds: Annotated[
        int,
        Field(ge=10, le=3600),
        Guide(
            unit="seconds",
            why="Shorten it to see short changes of the counters; every sample costs a call to libvirt and room in the database.",
        ),
    ] = Field(default=300, description="the time from one sample of the counters to the next")
    exit_trace_milliseconds: Annotated[
        int,
        Field(ge=0, le=2000),
        Guide(
            unit="milliseconds",
            why="Set it to 500, say, where the daemon may use perf, to estimate how many exits skip an instruction beside bounding it. "
            "It is done before so few samples that it costs less than a tenth of the saving, and never on hosts with isolated or "
            "nohz_full CPUs.",
        ),
    ] = Field(default=0, description="how long exits are traced before a sample; 0: never")
    retention_days: Annotated[
        int,
        Field(ge=1, le=3650),
        Guide(
            unit="days",
            why="Lower it to save disk space, raise it where older questions have to be answered from this host. What still holds is "
            "kept whatever its age.",
        ),
    ] = Field(default=400, description="how long the history of facts and findings is kept")
    sample_retention_days: Annotated[
        int,
        Field(ge=1, le=3650),
        Guide(unit="days", why="Lower it to save disk space, raise it to look back further on the counters of this host."),
    ] = Field(default=7, description="how long samples are kept")
    ledger_hours_retention_days: Annotated[
        int,
        Field(ge=2, le=3650),
        Guide(
            unit="days",
            why="Raise it to tell savings by the hour further back; every running domain adds some 2 kB a day. Days of the ledger are "
            "kept for retention_days.",
        ),
    ] = Field(default=35, description="how long the hours of the ledger are kept")
    database_limit_mib: Annotated[
        int,
        Field(ge=16, le=65_536),
        Guide(
            unit="MiB",
            why="Lower it where the disk is small; raise it where history ends before retention_days are over. What is too much goes, "
            "the oldest first and samples before history.",
        ),
    ] = Field(default=512, description="the size that the database is kept to")
    metrics_listen: Annotated[
        Annotated[str, AfterValidator(_loopback)] | None,
        Guide(
            unit="address:port",
            why="Set it, to 127.0.0.1:9478 for example, where Prometheus or its agent on this host is to scrape the daemon. Every user of "
            "this host can then read the metrics; no other host can.",
            allowed='127.x.x.x:PORT or "[::1]:PORT" (in quotes), PORT from 1 to 65535, or null',
            default="null (not served)",
        ),
    ] = Field(default=None, description="where the daemon serves its metrics over HTTP, at /metrics")
    metrics_textfile: Annotated[
        Annotated[AbsolutePath, AfterValidator(_textfile)] | None,
        Guide(
            unit="path",
            why="Set it, to /var/lib/prometheus/node-exporter/exitguard.prom for example, where node_exporter's textfile collector brings "
            "the metrics home. The daemon's user, and its unit (ReadWritePaths=), must be allowed to write in that directory.",
            allowed="an absolute path that ends in .prom, or null",
            default="null (not written)",
        ),
    ] = Field(default=None, description="the file that the daemon writes its metrics to")

    hub_url: Annotated[
        Annotated[str, Field(max_length=500), AfterValidator(_hub_url)] | None,
        Guide(
            unit="URL",
            why="Set it on a host to push what is observed there; the daemon's unit has no network, and needs a drop-in (docs/fleet.md). "
            "Set it where operators work to ask the hub about the whole fleet.",
            allowed="https://HOST[:PORT], http:// for loopback addresses only, or null",
            default="null (nothing is pushed)",
        ),
    ] = Field(default=None, description="the hub that the daemon pushes to, and that operators ask")
    hub_token_file: Annotated[
        AbsolutePath | None,
        Guide(
            unit="path",
            why="Set it where operators work: `report --fleet` and the like ask the hub by the token that `exitguard hub token` made. Who "
            "can read the file can ask too. The daemon does not need it.",
            allowed="an absolute path, or null",
        ),
    ] = Field(default=None, description="a file with an operator's token for the hub")
    hub_key_file: Annotated[
        AbsolutePath | None,
        Guide(
            unit="path",
            why="Set it to keep the key elsewhere. The daemon makes it; whoever can read it can write to the hub as this host.",
            allowed="an absolute path, or null",
            default="null (hub-key in state_dir)",
        ),
    ] = Field(default=None, description="the file of this host's key for the hub")
    hub_enrolment_file: Annotated[
        AbsolutePath | None,
        Guide(
            unit="path",
            why="Set it to let this host in at the hub, by a secret that `exitguard hub enrolment` made there. Of no use afterwards.",
            allowed="an absolute path, or null",
        ),
    ] = Field(default=None, description="a file with the secret that lets this host in at the hub")
    hub_ca_file: Annotated[
        AbsolutePath | None,
        Guide(
            unit="path",
            why="Set it where the hub's certificate is of a site's own authority.",
            allowed="an absolute path, or null",
            default="null (those that the system trusts)",
        ),
    ] = Field(default=None, description="certificates in PEM that the hub's is checked by")
    push_interval_seconds: Annotated[
        int,
        Field(ge=5, le=3600),
        Guide(unit="seconds", why="Shorten it where the hub is to know sooner; raise it to spare a hub of very many hosts."),
    ] = Field(default=60, description="the time from one push to the next")
    spool_limit_mib: Annotated[
        int,
        Field(ge=1, le=16_384),
        Guide(
            unit="MiB",
            why="Raise it to bridge longer outages of the hub; it is part of database_limit_mib. What is too much goes, the oldest first, "
            "and the hub shows the gap.",
        ),
    ] = Field(default=64, description="how much may wait for the hub")
