"""compute_api with resizes in it: what a real Nova 26.2.2 shows of an instance from the 202 to its end, as far as a test says so."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from compute_api import SILENT, Answer, ComputeApi, Query, _ChangingHandler, refusal

UUID = "44444444-0000-4000-8000-000000000001"
REQUEST = "req-8cf1c23f-7b16-41c4-83af-cdc8ce65f459"
NOTHING_GOING_ON = {"OS-EXT-STS:task_state": None}
SIZE = {"vcpus": 1, "ram": 64, "disk": 1, "swap": 0}


def copy_of(name: str, **extra_specs: str) -> dict[str, Any]:
    """An instance's own copy of a flavor."""
    specs = {key.replace("_", ":", 1): text for key, text in extra_specs.items()}
    return {"original_name": name, **SIZE, "OS-FLV-EXT-DATA:ephemeral": 0, "ephemeral": 0, "extra_specs": specs}


OLD, NEW = copy_of("tiny"), copy_of("tiny-off", hw_pmu="false")
RESIZING = {"status": "RESIZE", "OS-EXT-STS:task_state": "resize_prep"}
TO_CONFIRM = {"status": "VERIFY_RESIZE", "flavor": NEW, **NOTHING_GOING_ON}
OLD_AGAIN = {"status": "SHUTOFF", "flavor": OLD, **NOTHING_GOING_ON}
CONFIRMED = {"status": "SHUTOFF", "flavor": NEW, **NOTHING_GOING_ON}


class ResizeApi(ComputeApi):
    """One stopped instance, and what becomes of it after each action: one state each time that it is looked at, the last one stays."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        for flavor in self.flavors.values():
            flavor.update({**SIZE, "swap": "", "OS-FLV-EXT-DATA:ephemeral": 0})
        self.servers[UUID] = {"id": UUID, "name": "web-1", "locked": False, "image": {"id": SILENT}, **OLD_AGAIN}
        #: By action; an Answer instead of a state is what one look at it is answered with.
        self.after: dict[str, list[dict[str, Any] | Answer]] = {
            "resize": [RESIZING, TO_CONFIRM],
            "confirmResize": [{"OS-EXT-STS:task_state": None}, CONFIRMED],
            "revertResize": [{"status": "REVERT_RESIZE", "OS-EXT-STS:task_state": "resize_reverting"}, OLD_AGAIN],
        }
        #: What an action is answered; 202 unless it is said here. One that is answered below 500 and is no 2xx is not done.
        self.answered: dict[str, Answer] = {}
        self.actions: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    @property
    def asked_for(self) -> list[str]:
        """The actions, in their order."""
        return [next(iter(body)) for body in self.bodies]

    def _post_action(self, parts: list[str], body: Any, _query: Query) -> Answer:
        self.bodies.append(body)
        action = next(iter(body))
        answer = self.answered.get(action, Answer(b"", 204 if action == "confirmResize" else 202))
        if not 400 <= answer.status < 500:
            self.servers[parts[0]]["future"] = list(self.after[action])
        return answer

    def _get_servers(self, parts: list[str], body: Any, query: Query) -> Answer:
        if parts[1:] == ["os-instance-actions"]:
            return Answer({"instanceActions": self.actions})
        if parts[1:] == ["os-instance-actions", REQUEST]:
            return Answer({"instanceAction": {"request_id": REQUEST, "events": self.events}})
        future = self.servers.get(parts[0], {}).get("future") or [{}]
        if isinstance(future[0], Answer):
            return future.pop(0)
        return super()._get_servers(parts, body, query)

    def fails_with(self, details: str) -> None:
        """What the actions of an instance tell of a resize that failed after its 202."""
        self.actions = [{"action": "resize", "message": "Error", "request_id": REQUEST}, {"action": "create", "message": None}]
        failed = {"event": "cold_migrate", "result": "Error", "details": details}
        self.events = [{"event": "conductor_migrate_server", "result": "Error", "details": None}, failed]

    def is_gone(self) -> Answer:
        return refusal(404, f"Instance {UUID} could not be found.")


@contextmanager
def resize_api() -> Iterator[ResizeApi]:
    """A server of its own, on a free port of the loopback."""
    handler = type("Handler", (_ChangingHandler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    handler.cloud = ResizeApi(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield handler.cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
