"""The whole way: a daemon as a process audits libvirt's test driver, lets itself in at a hub as a process, and pushes."""

import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hub_process import RunningHub

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from running_daemon import running_daemon

from exitguard.model.documents import AuditReport
from exitguard.store.host import HostStore

pytestmark = pytest.mark.integration


def told(hub: RunningHub, host_id: str) -> AuditReport | None:
    with hub.store() as store:
        return next((each.report() for each in store.reports(host_id=host_id)), None)


def test_what_a_daemon_audits_is_in_the_hub_also_after_the_hub_was_gone(hub: RunningHub, tmp_path: Path) -> None:
    secret = tmp_path / "enrolment"
    secret.write_text(hub.new_secret(f"daemon {uuid4()}"))
    settings = {
        "connect": "test:///default",
        "audit_interval_seconds": 15,
        "push_interval_seconds": 5,
        "hub_url": hub.url,
        "hub_enrolment_file": str(secret),
    }
    with running_daemon(tmp_path / "home", settings) as daemon:
        daemon.wait_for_event("audit.finished", stored=True)
        host_id = (daemon.state_dir / "host-id").read_text().strip()
        daemon.wait_for("its first report in the hub", lambda: told(hub, host_id) is not None)
        hub.end(signal.SIGKILL)
        try:
            daemon.wait_for_event("condition.begun", condition="hub")
            audits = len(daemon.named("audit.finished"))
            daemon.wait_for_event("audit.finished", count=audits + 1)
        finally:
            hub.start()
        daemon.wait_for_event("condition.over", condition="hub")
        assert daemon.end() == 0
        assert daemon.named("job.failed") == []
    with HostStore.open(daemon.state_dir, now=datetime.now(UTC), read_only=True) as store:
        stored, waiting = store.report(), store.spool.state().records
    assert stored is not None
    newest = told(hub, host_id)
    assert newest is not None
    assert newest.observed_at == stored.observed_at if waiting == 0 else newest.observed_at < stored.observed_at
    answer = hub.client.get(f"/v1/hosts/{host_id}", headers=hub.operator())
    assert json.loads(answer.text)["hostname"] == stored.host.hostname
