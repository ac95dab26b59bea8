"""The hosts of a hub by the names under which an inventory has them, and their facts."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from exitguard.cli.fleet import hosts_of
from exitguard.model.documents import FactsDocument
from exitguard.model.hub import FleetHost
from exitguard.model.record import Record
from exitguard.model.time import UtcTime

if TYPE_CHECKING:
    from exitguard.fleet.operator import HubOperator

#: RFC 1123, and no leading hyphen: names come from hosts, and go into command lines of ssh.
_NAME = re.compile(r"(?=.{1,253}$)[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*", re.ASCII)
#: What was not heard of for longer is not planned for.
SILENT_AFTER = timedelta(days=1)


class _Line(Record):
    host_id: str
    received_at: UtcTime
    facts: FactsDocument


class Named:
    """Hosts by their names, and a sentence for each that is left out."""

    def __init__(self, hosts: Iterable[FleetHost]) -> None:
        self.by_name: dict[str, FleetHost] = {}
        self.left_out: list[str] = []
        known = [host for host in hosts if host.may_write]
        names = Counter((host.hostname or "").lower() for host in known)
        for host in known:
            name = host.hostname or ""
            if _NAME.fullmatch(name) is None:
                self.left_out.append(f"host {host.host_id} has no name that an inventory may have: {name[:80]!r}")
            elif names[name.lower()] > 1:
                self.left_out.append(f"host {host.host_id} goes by the name {name}, as another one does")
            else:
                self.by_name[name] = host


def named_hosts(hub: "HubOperator") -> Named:
    """The hosts that may push. Raises HubError."""
    return Named(hosts_of(hub))


def inventory(named: Named, now: datetime) -> dict[str, object]:
    """The answer to `--list` of an Ansible inventory script: everything in `_meta`, so that no host is asked for alone."""
    groups: dict[str, list[str]] = {}
    for name, host in sorted(named.by_name.items()):
        of_host = ["exitguard_silent"] if host.received_at is None or now - host.received_at > SILENT_AFTER else []
        if host.kernel_state is not None:
            of_host.append(f"exitguard_kernel_{host.kernel_state}")
        if host.exit_code is not None:
            of_host.append(f"exitguard_exit_{host.exit_code}")
        for group in of_host:
            groups.setdefault(group, []).append(name)
    variables = {name: {"exitguard_host_id": host.host_id} for name, host in named.by_name.items()}
    listed = {group: {"hosts": hosts} for group, hosts in sorted(groups.items())}
    return {"_meta": {"hostvars": variables}, "all": {"hosts": sorted(named.by_name), "children": sorted(listed)}, **listed}


def facts_of_fleet(hub: "HubOperator", named: Named, now: datetime) -> Iterator[tuple[str, FactsDocument]]:
    """The facts of hosts by their names; what is left out goes to `named.left_out`. Raises HubError."""
    names = {host.host_id: name for name, host in named.by_name.items()}
    for content in hub.raw_lines("/v1/facts"):
        try:
            line = _Line.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            named.left_out.append(
                f"facts that are none of this version: {content[:60].decode('utf-8', 'replace')}...: {where}: {first['msg']}"
            )
            continue
        name = names.get(line.host_id)
        if name is None or line.facts.host.identity.id != line.host_id:
            continue
        if now - line.received_at > SILENT_AFTER:
            named.left_out.append(
                f"{name} was not heard of since {line.received_at:%Y-%m-%d %H:%M} UTC: what it was may not be so any more"
            )
            continue
        yield name, line.facts
