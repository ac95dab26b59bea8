"""compute_api with what changes properties of flavors and images in it, and stopped instances as Nova shows them.

A refusal is worded and numbered as Nova 26.2.2 and Glance 25 do: an extra spec that is not there is 404, and a property that is not there
is 409. What nova-manage stores is a test's to show.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

sys.path.append(str(Path(__file__).parent))

from compute_api import SILENT, ComputeApi, _ChangingHandler, refusal
from fake_openstack import Answer, Query

LAUNCHED_AT = "2026-11-01T10:00:00.000000"
UUID = "33333333-0000-4000-8000-{:012}"


class PropertyApi(ComputeApi):
    """What is in `flavors`, `images` and `servers` is what it answers."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        #: What somebody else does just before a request is answered, once, by method and path.
        self.meanwhile: dict[tuple[str, str], Callable[[], Any]] = {}
        #: Requests that are carried out, and answered otherwise.
        self.answered_otherwise: dict[tuple[str, str], Answer] = {}

    def instance(self, number: int, *, image: Any = None, extra_specs: dict[str, str] | None = None, **more: Any) -> str:
        """One that its owner has stopped, and that says nothing of the PMU, but for `more`."""
        uuid = UUID.format(number)
        self.servers[uuid] = {
            "id": uuid,
            "name": f"web-{number}",
            "status": "SHUTOFF",
            "OS-EXT-STS:task_state": None,
            "OS-SRV-USG:launched_at": LAUNCHED_AT,
            "locked": False,
            "image": {"id": SILENT} if image is None else image,
            "flavor": {"original_name": "tiny", "extra_specs": extra_specs or {}},
            **more,
        }
        return uuid

    @property
    def changes(self) -> list[str]:
        """What was asked for beside looking and logging in."""
        return [f"{verb} {path}" for verb, path in self.log if verb != "GET" and not path.endswith("/auth/tokens")]

    def changed(self, verb: str, path: str, body: Any, query: Query) -> Answer:
        self.meanwhile.pop((verb, path), lambda: None)()
        if verb == "PATCH" and (verb, path) not in self.instead:
            answer = self._patch_image(path.rpartition("/")[2], body)
        else:
            answer = super().changed(verb, path, body, query)
        return self.answered_otherwise.get((verb, path), answer)

    def _get_flavors(self, parts: list[str], body: Any, query: Query) -> Answer:
        flavor = self.flavors.get(unquote(parts[0])) if parts else None
        if parts[1:] == ["os-extra_specs"] and flavor is not None:
            return Answer({"extra_specs": flavor["extra_specs"]})
        return super()._get_flavors([unquote(part) for part in parts], body, query)

    def _post_flavors(self, parts: list[str], body: Any, _query: Query) -> Answer:
        flavor = self.flavors.get(unquote(parts[0]))
        if flavor is None:
            return refusal(404, f"Flavor {unquote(parts[0])} could not be found.")
        flavor["extra_specs"].update(body["extra_specs"])
        return Answer({"extra_specs": flavor["extra_specs"]})

    def _delete_flavors(self, parts: list[str], _body: Any, _query: Query) -> Answer:
        name, key = unquote(parts[0]), unquote(parts[2])
        if self.flavors.get(name, {}).get("extra_specs", {}).pop(key, None) is None:
            return refusal(404, f"Flavor {name} has no extra specs with key {key}.")
        return Answer(b"")

    def _patch_image(self, uuid: str, operations: list[dict[str, str]]) -> Answer:
        image = self.images.get(unquote(uuid))
        if image is None:
            return refusal(404, f"No image found with ID {unquote(uuid)}")
        for operation in operations:
            key = operation["path"].removeprefix("/")
            if operation["op"] != "add" and key not in image:
                return Answer(f"<h1>409 Conflict</h1>\nProperty {key} does not exist.".encode(), 409)
            if operation["op"] == "remove":
                del image[key]
            else:
                image[key] = operation["value"]
        return Answer(image)

    def _image(self, uuid: str, query: Query) -> Answer:
        return super()._image(unquote(uuid), query)


class _Handler(_ChangingHandler):
    cloud: PropertyApi

    def do_PATCH(self) -> None:  # noqa: N802 - the name that http.server looks for
        if self.headers.get("Content-Type") != "application/openstack-images-v2.1-json-patch":
            self._send(refusal(415, "Unsupported Content-Type"))
            return
        self._change()


@contextmanager
def property_api() -> Iterator[PropertyApi]:
    """A server of its own, on a free port of the loopback."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False  # an answer that a test holds back
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that no longer waits
    handler.cloud = PropertyApi(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield handler.cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
