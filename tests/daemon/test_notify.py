"""systemd's notification protocol, against real sockets that stand where systemd's would."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from exitguard.daemon.notify import Notifier

SECOND = 1_000_000_000


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.nanoseconds = 5 * SECOND + 1999

    def __call__(self) -> int:
        return self.nanoseconds


class ServiceManager:
    """A bound datagram socket, read without waiting: sends to AF_UNIX have arrived when they return."""

    def __init__(self, address: bytes | str, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address)
        self.name = name

    def told(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    if request.param == "path":
        listening = ServiceManager(str(tmp_path / "notify"), str(tmp_path / "notify"))
    else:
        name = f"exitguard-test-{uuid4()}"
        listening = ServiceManager(b"\0" + name.encode(), f"@{name}")
    yield listening
    listening.socket.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notifier(manager: ServiceManager, clock: Clock) -> Iterator[Notifier]:
    environ = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "8000000", "WATCHDOG_PID": str(os.getpid())}
    made = Notifier.from_environment(environ, monotonic_nanoseconds=clock)
    yield made
    made.close()


def test_life_of_a_service_is_told_in_systemds_words(notifier: Notifier, manager: ServiceManager) -> None:
    notifier.ready("3 domains, compliant")
    notifier.status("auditing")
    notifier.reloading()
    notifier.ready("reloaded")
    notifier.stopping()
    assert manager.told() == [
        "READY=1\nSTATUS=3 domains, compliant",
        "STATUS=auditing",
        "RELOADING=1\nMONOTONIC_USEC=5000001",
        "READY=1\nSTATUS=reloaded",
        "STOPPING=1",
    ]


def test_reload_carries_the_time_of_the_monotonic_clock(manager: ServiceManager) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.name})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.close()
    [message] = manager.told()
    assert before <= int(message.removeprefix("RELOADING=1\nMONOTONIC_USEC=")) <= after


def test_sign_of_life_is_sent_at_most_four_times_in_the_watchdogs_time(notifier: Notifier, manager: ServiceManager, clock: Clock) -> None:
    assert notifier.watchdog_seconds == 8
    for _ in range(100):
        notifier.alive()
        clock.nanoseconds += SECOND // 10
    assert manager.told() == ["WATCHDOG=1"] * 5


def test_without_a_watchdog_no_sign_of_life_is_sent(manager: ServiceManager) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.name})
    assert notifier.watchdog_seconds is None
    notifier.alive()
    notifier.close()
    assert manager.told() == []


@pytest.mark.parametrize("text", ["", "0", "-5", "1e6", "\u0665", str(2**64 - 1), "9" * 5000])
def test_watchdog_time_that_systemd_would_not_write_is_none(manager: ServiceManager, text: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": text})
    notifier.close()
    assert notifier.watchdog_seconds is None


@pytest.mark.parametrize(("watched", "seconds"), [("41", None), ("42", 2.5), (None, 2.5), ("x", None)])
def test_watchdog_counts_for_the_process_that_it_names(manager: ServiceManager, watched: str | None, seconds: float | None) -> None:
    environ = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "2500000"} | ({} if watched is None else {"WATCHDOG_PID": watched})
    notifier = Notifier.from_environment(environ, process_id=42)
    notifier.close()
    assert notifier.watchdog_seconds == seconds


def test_children_cannot_speak_for_the_daemon(manager: ServiceManager) -> None:
    environ = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}
    assert notifier._socket is not None
    assert not os.get_inheritable(notifier._socket.fileno())
    notifier.close()


def test_status_is_one_bounded_line_without_controls(notifier: Notifier, manager: ServiceManager) -> None:
    notifier.status("web\x1b[31m\nREADY=1\r\u202e\udce9" + "\U0001f427" * 100_000)
    [message] = manager.told()
    assert "\n" not in message
    assert message.startswith(r"STATUS=web\x1b[31m\x0aREADY=1\x0d\u202e\udce9")
    assert message.isprintable()
    assert len(message.encode()) < 4096  # what systemd reads of one message


def test_what_a_full_socket_did_not_take_is_told_later(notifier: Notifier, manager: ServiceManager, clock: Clock) -> None:
    for number in range(5000):  # no queue is that long (net.unix.max_dgram_qlen)
        notifier.status(str(number))
    notifier.reloading()
    notifier.ready("reloaded")
    notifier.alive()
    assert "STATUS=4999" not in manager.told()
    clock.nanoseconds += 1
    notifier.alive()
    assert manager.told() == ["READY=1\nSTATUS=reloaded\nWATCHDOG=1"]
    notifier.alive()
    assert manager.told() == []


def test_what_is_owed_is_told_without_a_watchdog_too(tmp_path: Path) -> None:
    late = tmp_path / "late"
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(late)})
    notifier.ready("nobody listens yet")
    manager = ServiceManager(str(late), str(late))
    notifier.alive()
    notifier.close()
    assert manager.told() == ["READY=1\nSTATUS=nobody listens yet"]
    manager.socket.close()


@pytest.mark.parametrize("name", ["", "relative", "vsock:2:1234", "@", "/nowhere/notify", "/" + "x" * 5000, "@" + "x" * 5000, "/dev/null"])
def test_without_a_socket_nothing_happens(name: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    notifier.ready("x")
    notifier.status("x")
    notifier.reloading()
    notifier.alive()
    notifier.stopping()
    notifier.close()


def test_closed_notifier_stays_silent(notifier: Notifier, manager: ServiceManager) -> None:
    notifier.close()
    notifier.ready("x")
    notifier.alive()
    notifier.close()
    assert manager.told() == []


def test_manager_that_went_away_and_came_back_is_told_again(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    first = ServiceManager(str(path), str(path))
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(path)})
    first.socket.close()
    path.unlink()
    notifier.status("unheard")
    second = ServiceManager(str(path), str(path))
    notifier.status("heard")
    notifier.close()
    assert second.told() == ["STATUS=heard"]
    second.socket.close()
