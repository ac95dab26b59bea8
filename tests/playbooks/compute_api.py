"""A loopback HTTP server with the part of Nova and Glance that the modules for compute hosts ask for, for the real SDK to talk to.

It keeps services and servers, and answers in the shapes of a real Nova 26.2.2. What Nova would do by itself (build an instance, fail to,
take its time to delete one) is what a test says: it is no Nova, and proves nothing about one; tests/openstack/ does.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.append(str(Path(__file__).parents[1] / "facts"))

from fake_openstack import Answer, FakeOpenStack, Query, _Handler

HOST = "compute-a"
SILENT, SAYS_OFF = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"
CANARY = "22222222-0000-4000-8000-{:012}"


def refusal(status: int, message: str) -> Answer:
    """As Nova words one."""
    name = {400: "badRequest", 403: "forbidden", 404: "itemNotFound", 409: "conflictingRequest"}.get(status, "computeFault")
    return Answer({name: {"code": status, "message": message}}, status)


NOT_ALLOWED = "Policy doesn't allow {} to be performed."


class ComputeApi(FakeOpenStack):
    """A cloud of one compute host and a few flavors and images. What is in its dictionaries is what it answers."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        service = {"id": "svc-1", "binary": "nova-compute", "host": HOST, "zone": "nova", "status": "enabled", "state": "up"}
        self.services: list[dict[str, Any]] = [{**service, "disabled_reason": None, "forced_down": False}]
        self.flavors: dict[str, dict[str, Any]] = {
            "42": {"id": "42", "name": "tiny", "extra_specs": {}},
            "43": {"id": "43", "name": "tiny-off", "extra_specs": {"hw:pmu": "false"}},
        }
        self.images: dict[str, dict[str, Any]] = {
            SILENT: {"id": SILENT, "name": "empty", "status": "active"},
            SAYS_OFF: {"id": SAYS_OFF, "name": "empty-off", "status": "active", "hw_pmu": "false"},
        }
        self.servers: dict[str, dict[str, Any]] = {}
        #: Bodies of what was asked to be made or changed.
        self.bodies: list[dict[str, Any]] = []
        #: What becomes of a new server each time that it is looked at; the last one stays.
        self.becomes: list[dict[str, Any]] = [{"status": "BUILD", "OS-EXT-STS:task_state": "spawning"}, {"status": "ACTIVE"}]
        #: What a deleted server becomes: gone, or this.
        self.deleted_becomes: dict[str, Any] | None = None
        #: Answers instead of what would be done, by method and path.
        self.instead: dict[tuple[str, str], Answer] = {}

    def server(self, number: int, **more: Any) -> dict[str, Any]:
        uuid = CANARY.format(number)
        made = {"id": uuid, "name": "web-1", "status": "ACTIVE", "OS-EXT-STS:task_state": None, "OS-EXT-SRV-ATTR:host": HOST}
        self.servers[uuid] = {**made, "metadata": {}, "image": {"id": SILENT}, "flavor": {"extra_specs": {}}, **more}
        return self.servers[uuid]

    def answer(self, path: str, query: Query) -> Answer:
        """What a GET is answered."""
        return self.changed("GET", path, None, query)

    def changed(self, verb: str, path: str, body: Any, query: Query) -> Answer:
        """What a request is answered, and done by it."""
        if (verb, path) in self.instead:
            return self.instead[verb, path]
        parts = path.removeprefix("/v2.1").strip("/").split("/")
        handler = getattr(self, f"_{verb.lower()}_{parts[-1 if parts[-1] == 'action' else 0].replace('-', '_')}", None)
        if path.startswith("/image/v2/images"):
            return self._image(path.removeprefix("/image/v2/images").strip("/"), query)
        return refusal(404, "no such thing") if handler is None else handler(parts[1:], body, query)

    def _image(self, uuid: str, query: Query) -> Answer:
        if uuid:
            return Answer(self.images[uuid]) if uuid in self.images else refusal(404, "no such image")
        asked = query["name"][0]
        return Answer({"images": [image for image in self.images.values() if asked == f'in:"{image["name"]}"']})

    def _get_flavors(self, parts: list[str], _body: Any, query: Query) -> Answer:
        if parts:
            return Answer({"flavor": self.flavors[parts[0]]}) if parts[0] in self.flavors else refusal(404, "Flavor could not be found.")
        return Answer({"flavors": [] if "marker" in query else [{**flavor, "extra_specs": None} for flavor in self.flavors.values()]})

    def _get_os_services(self, _parts: list[str], _body: Any, query: Query) -> Answer:
        return Answer({"services": [service for service in self.services if service["host"] in query["host"]]})

    def _put_os_services(self, parts: list[str], body: Any, _query: Query) -> Answer:
        self.bodies.append(body)
        service = next(each for each in self.services if each["id"] == parts[0])
        service.update({"disabled_reason": None, **body})
        return Answer({"service": service})

    def _get_servers(self, parts: list[str], _body: Any, query: Query) -> Answer:
        if parts and parts[0] in self.servers:
            server = self.servers[parts[0]]
            if server.get("future"):
                server.update(server["future"].pop(0) if len(server["future"]) > 1 else server["future"][0])
            return Answer({"server": {key: value for key, value in server.items() if key != "future"}})
        if parts and parts != ["detail"]:
            return refusal(404, f"Instance {parts[0]} could not be found.")
        name = re.compile(query.get("name", [""])[0])
        found = [server for server in self.servers.values() if name.search(server["name"])]
        if "host" in query:
            found = [server for server in found if server["OS-EXT-SRV-ATTR:host"] in query["host"]]
        return Answer({"servers": [] if "marker" in query else found})

    def _post_servers(self, _parts: list[str], body: Any, _query: Query) -> Answer:
        self.bodies.append(body)
        asked = body["server"]
        future = [{"OS-EXT-STS:task_state": None, **each} for each in self.becomes]
        made = self.server(len(self.servers) + 1, name=asked["name"], metadata=asked["metadata"], status="BUILD", future=future)
        return Answer({"server": {"id": made["id"]}}, 202)

    def _post_action(self, parts: list[str], body: Any, _query: Query) -> Answer:
        self.bodies.append(body)
        self.servers.pop(parts[0])
        return Answer(b"", 202)

    def _delete_servers(self, parts: list[str], _body: Any, _query: Query) -> Answer:
        if parts[0] not in self.servers:
            return refusal(404, f"Instance {parts[0]} could not be found.")
        if self.deleted_becomes is None:
            self.servers.pop(parts[0])
        else:
            self.servers[parts[0]]["future"] = [self.deleted_becomes]
        return Answer(b"", 204)


class _ChangingHandler(_Handler):
    cloud: ComputeApi

    def _change(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/identity/v3/auth/tokens":
            super().do_POST()
            return
        self._log()
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(content) if content else None
        self._send(self.cloud.changed(self.command, parts.path, body, parse_qs(parts.query)))

    do_POST = do_PUT = do_DELETE = _change  # noqa: N815 - the names that http.server looks for


@contextmanager
def compute_api() -> Iterator[ComputeApi]:
    """A server of its own, on a free port of the loopback."""
    handler = type("Handler", (_ChangingHandler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.cloud = ComputeApi(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield handler.cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
