"""The network service of a cloud that has no networks: `empty_network.py PORT`, on the loopback.

Nova asks for ports, networks and groups whenever it shows or deletes an instance, also one without a NIC, and answers 500 where nobody is
there. This answers truthfully for an empty cloud, and refuses what would make something. It is the one part of the stack that is not
the genuine article.
"""

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_REFUSED = {"NeutronError": {"type": "Forbidden", "message": "this cloud has no networking", "detail": ""}}
_MISSING = {"NeutronError": {"type": "NotFound", "message": "no such thing", "detail": ""}}


class EmptyNetwork(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path.partition("?")[0].strip("/").split("/"):
            case [""]:
                links = [{"rel": "self", "href": f"http://{self.headers['Host']}/v2.0/"}]
                self._answer(HTTPStatus.OK, {"versions": [{"id": "v2.0", "status": "CURRENT", "links": links}]})
            case ["v2.0"]:
                self._answer(HTTPStatus.OK, {"resources": []})
            case ["v2.0", collection]:
                self._answer(HTTPStatus.OK, {collection.removesuffix(".json").replace("-", "_"): []})
            case _:
                self._answer(HTTPStatus.NOT_FOUND, _MISSING)

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(HTTPStatus.FORBIDDEN, _REFUSED)

    do_POST = do_PUT = do_DELETE = _refuse  # noqa: N815 - called by these names

    def _answer(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), EmptyNetwork).serve_forever()
