"""A socket between a libvirt client and the real daemon that can stop forwarding: what a stuck domain or daemon looks like from here.

It reads the frames of libvirt's protocol (src/rpc/virnetprotocol.x: length, program, version, procedure, type, serial, status, each
four bytes, big-endian), so that it can tell which procedure a client calls and about which domain.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from libvirt_lab import uri_of

#: REMOTE_PROC_DOMAIN_GET_XML_DESC (src/remote/remote_protocol.x).
GET_XML_DESC = 14
_HEADER = struct.Struct(">7I")
_REMOTE_PROGRAM = 0x20008086
_CALL = 0
_LIMIT_SECONDS = 60


@dataclass
class BlockingProxy:
    """Forwards between a client and the daemon at `upstream`, but for what `silent`, `stuck` and `hold_at` name."""

    path: Path
    upstream: Path
    #: Domains whose XML is asked for in vain: the connection that asks gets no answer any more.
    stuck: frozenset[str] = frozenset()
    #: No connection ever gets an answer.
    silent: bool = False
    #: The how-manieth question for an XML is kept back, once, until release().
    hold_at: int | None = None
    #: The uuid of every question for an XML, in the order in which they came.
    asked: list[str] = field(default_factory=list)
    connections: int = 0
    _held: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return uri_of(self.path)

    def wait_until_held(self) -> None:
        assert self._held.wait(_LIMIT_SECONDS), "the question to hold back never came"

    def release(self) -> None:
        self._released.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed: the test is over
            self.connections += 1
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.silent:
            return
        daemon = socket.socket(socket.AF_UNIX)
        self._sockets.append(daemon)
        try:
            daemon.connect(str(self.upstream))
        except OSError:
            client.close()  # as a daemon that is not there
            return
        threading.Thread(target=self._forward_answers, args=(daemon, client), daemon=True).start()
        with contextlib.suppress(OSError):
            for frame in _frames(client):
                if not self._may_pass(frame):
                    return
                daemon.sendall(frame)
        with contextlib.suppress(OSError):
            daemon.shutdown(socket.SHUT_WR)

    def _forward_answers(self, daemon: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := daemon.recv(1 << 16):
                client.sendall(piece)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _may_pass(self, frame: bytes) -> bool:
        uuid = _asks_for_xml(frame)
        if uuid is None:
            return True
        self.asked.append(uuid)
        if len(self.asked) == self.hold_at:
            self._held.set()
            assert self._released.wait(_LIMIT_SECONDS), "nobody released the question"
        return uuid not in self.stuck


def _frames(client: socket.socket) -> Iterator[bytes]:
    buffer = b""
    while piece := client.recv(1 << 16):
        buffer += piece
        while len(buffer) >= 4:
            length = int.from_bytes(buffer[:4])
            if len(buffer) < length:
                break
            yield buffer[:length]
            buffer = buffer[length:]


def _asks_for_xml(frame: bytes) -> str | None:
    """The uuid of the domain whose XML a frame asks for. remote_nonnull_domain: a string, then the uuid's 16 bytes."""
    if len(frame) < _HEADER.size:
        return None
    _, program, _, procedure, kind, *_ = _HEADER.unpack_from(frame)
    if (program, procedure, kind) != (_REMOTE_PROGRAM, GET_XML_DESC, _CALL):
        return None
    name_length = int.from_bytes(frame[_HEADER.size : _HEADER.size + 4])
    at = _HEADER.size + 4 + name_length + -name_length % 4  # XDR pads to four bytes
    return str(UUID(bytes=frame[at : at + 16]))


@contextlib.contextmanager
def blocking_proxy(
    folder: Path, upstream: Path, *, stuck: frozenset[str] = frozenset(), silent: bool = False, hold_at: int | None = None
) -> Iterator[BlockingProxy]:
    """A proxy that listens; at the end it is closed, and so is every connection through it."""
    proxy = BlockingProxy(folder / "proxy", upstream, stuck=stuck, silent=silent, hold_at=hold_at)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(proxy.path))
        listener.listen()
        threading.Thread(target=proxy._accept, args=(listener,), daemon=True).start()
        try:
            yield proxy
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
            for each in proxy._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
