"""A whole machine for the tests: a Debian 12 with systemd as its first process, on processors that QEMU emulates.

It needs no hardware virtualisation, and offers it all the same: QEMU emulates AMD's, so there is a working /dev/kvm inside. Its disk
is thrown away at its end, whatever became of it. It is reached over ssh on a loopback port that the kernel chose, and reaches
nothing itself. QEMU and ssh end with the test process, however that ends.

Emulated processors are about fifteen times slower than real ones: every wait here is bounded, and bounded generously.
"""

import contextlib
import json
import re
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from debian_image import DebianImage

_PROGRAMS = ("qemu-system-x86_64", "ssh", "setpriv")
_BOOT_LIMIT_SECONDS = 240
_SUSPEND_LIMIT_SECONDS = 60
_MONITOR_LIMIT_SECONDS = 30
_LOG_LINES = 60
#: An EPYC has features that are not emulated.
_EXPECTED_WARNING = "TCG doesn't support requested feature"


class MachineError(AssertionError):
    """The machine did not do what was asked of it; the message ends with what its console said last."""


def why_no_machine() -> str | None:
    """What is missing here to start the machine; None where nothing is."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    return f"missing: {', '.join(missing)} (`make test` installs what it can)" if missing else None


class Machine:
    """A running machine, between `with Machine(...) as machine:` and the end of that block."""

    def __init__(self, image: DebianImage, *, memory_mib: int = 1536) -> None:
        self.image = image
        self.memory_mib = memory_mib
        self.ssh_port = 0
        self._qemu: subprocess.Popen[bytes] | None = None
        self._monitor: _Monitor | None = None
        self._ssh: subprocess.Popen[bytes] | None = None
        # Not pytest's: a socket's path may have 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="machine-"))

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.power_off()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.power_off()

    # --- on and off -------------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on; return when it lets us in. Raises MachineError."""
        with (self._folder / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(self._qemu_command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _BOOT_LIMIT_SECONDS
        self._monitor = self._connect_monitor(deadline)
        forwards = self._monitor.execute("human-monitor-command", {"command-line": "info usernet"})
        found = re.search(r"HOST_FORWARD\S*\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", forwards)
        if found is None:
            raise self.failure(f"QEMU forwards no port: {forwards}")
        self.ssh_port = int(found[1])
        while not self._is_reachable(10):
            if time.monotonic() > deadline or self._qemu.poll() is not None:
                raise self.failure("the machine did not come up")
            time.sleep(0.3)

    def power_off(self) -> None:
        """Pull the plug: nothing on its disk is kept. Can be called at any time, and twice."""
        for process in (self._ssh, self._qemu):
            if process is not None:
                process.kill()
                process.wait()
        if self._monitor is not None:
            self._monitor.close()
        self._ssh = self._qemu = self._monitor = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def suspend(self, seconds: float) -> None:
        """Suspend to RAM for that long, and wake up as by the power button; return when it answers again."""
        assert self._monitor is not None
        self.run("systemctl suspend --no-block")
        self._wait_for_state("suspended")
        time.sleep(seconds)
        self._monitor.execute("system_wakeup")
        self._wait_for_state("running")
        self.wait_until("the machine answers after its sleep", lambda: self._is_reachable(10))

    def write_kernel_memory(self, address: int, data: bytes) -> None:
        """Write where a symbol of /proc/kallsyms lies, as a debugger would; the machine stands still meanwhile. Raises MachineError."""
        assert self._monitor is not None
        place = self._folder / "debugger"
        self._monitor.execute("human-monitor-command", {"command-line": f"gdbserver unix:{place},server=on,wait=off"})
        # GDB's remote serial protocol. It may be told first that the machine was stopped for it: that is no answer.
        command = f"M{address:x},{len(data):x}:{data.hex()}"
        answer = b""
        try:
            with socket.socket(socket.AF_UNIX) as debugger:
                debugger.settimeout(_MONITOR_LIMIT_SECONDS)
                debugger.connect(str(place))
                debugger.sendall(f"${command}#{sum(command.encode()) % 256:02x}".encode())
                while not (ended := re.search(rb"\$(OK|E..)#", answer)) and (received := debugger.recv(4096)):
                    answer += received
        finally:
            self._monitor.execute("human-monitor-command", {"command-line": "gdbserver none"})
            self._monitor.execute("cont")
        if ended is None or ended[1] != b"OK":
            raise self.failure(f"QEMU's debugger answered {command} with {answer!r}")

    # --- from inside ------------------------------------------------------------------------------------------------------------

    def run(self, command: str, *, timeout: float = 120, stdin: bytes | None = None) -> "subprocess.CompletedProcess[str]":
        """What root's shell makes of `command`. Raises MachineError where it takes too long or the machine is not reached."""
        self._ensure_ssh()
        try:
            result = subprocess.run(
                [*self._ssh_words(), "machine", command],
                input=b"" if stdin is None else stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self.failure(f"{command!r} took longer than {timeout:g} seconds") from None
        stdout, stderr = (text.decode(errors="replace") for text in (result.stdout, result.stderr))
        if result.returncode == 255:  # ssh's own; no command of these tests ends so
            raise self.failure(f"the machine was not reached for {command!r}: {stderr}")
        return subprocess.CompletedProcess(command, result.returncode, stdout, stderr)

    def output(self, command: str, *, timeout: float = 120, stdin: bytes | None = None) -> str:
        """The standard output of a command that must succeed. Raises MachineError where it does not."""
        result = self.run(command, timeout=timeout, stdin=stdin)
        if result.returncode != 0:
            raise self.failure(f"{command!r} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result.stdout

    def succeeds(self, command: str) -> bool:
        return self.run(command).returncode == 0

    def put(self, source: Path, target: str) -> None:
        """Copy a file into the machine."""
        self.output(f"cat >{shlex.quote(target)}", stdin=source.read_bytes(), timeout=300)

    def write(self, target: str, text: str) -> None:
        """Write a file of the machine, and the folders above it."""
        quoted = shlex.quote(target)
        self.output(f'mkdir -p "$(dirname {quoted})" && cat >{quoted}', stdin=text.encode())

    def wait_until(self, claim: str, holds: Callable[[], bool], *, timeout: float = 240, every: float = 1) -> None:
        """Return as soon as `holds()`; raises MachineError naming the claim where that does not come true in time."""
        deadline = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > deadline:
                raise self.failure(f"not so within {timeout:g} seconds: {claim}")
            time.sleep(every)

    def step_clock(self, seconds: int) -> None:
        """Set the machine's clock forward, or back where negative, as an operator or a bad time server would."""
        self.output(f"date -s '{seconds:+d} seconds'")

    def failure(self, text: str) -> MachineError:
        """An error about this machine, with the end of its console and of its journal."""
        parts = [text]
        for name in ("qemu.log", "serial.log"):
            with contextlib.suppress(OSError):
                lines = (self._folder / name).read_text(errors="replace").splitlines()
                lines = [line for line in lines if _EXPECTED_WARNING not in line][-_LOG_LINES:]
                parts += [f"--- {name}, its end", *lines]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            journal = subprocess.run(
                [*self._ssh_words(), "machine", f"journalctl --no-pager -n {_LOG_LINES}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )
            parts += ["--- journal, its end", journal.stdout.decode(errors="replace")]
        return MachineError("\n".join(parts))

    # --- how it is reached ------------------------------------------------------------------------------------------------------

    @property
    def ssh_options(self) -> dict[str, str]:
        """What ssh, or anything that uses it, must be told to be let in as root of the host `machine`."""
        return {
            "HostName": "127.0.0.1",
            "Port": str(self.ssh_port),
            "User": "root",
            "HostKeyAlias": "machine",
            "IdentityFile": str(self.image.private_key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.image.known_hosts),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "LogLevel": "ERROR",
        }

    def _ssh_words(self) -> list[str]:
        """ssh without this user's own configuration, through the connection that is already open where there is one."""
        options = {**self.ssh_options, "ControlPath": str(self._folder / "ssh")}
        return ["ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]

    def _ensure_ssh(self) -> None:
        """One connection that all commands share: the exchange of keys is slow on emulated processors."""
        if self._ssh is not None and self._ssh.poll() is None:
            return
        if self._qemu is None or self._qemu.poll() is not None:
            raise self.failure("the machine is not running")
        (self._folder / "ssh").unlink(missing_ok=True)
        words = [*self._ssh_words(), "-oControlMaster=yes", "-N", "machine"]
        with (self._folder / "ssh.log").open("ab") as log:
            self._ssh = subprocess.Popen(_ending_with_us(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not (self._folder / "ssh").exists() and self._ssh.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)

    def _is_reachable(self, seconds: float) -> bool:
        try:
            self._ensure_ssh()
            words = [*self._ssh_words(), "machine", "true"]
            return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    # --- QEMU -------------------------------------------------------------------------------------------------------------------

    def _qemu_command(self) -> list[str]:
        disk = f"if=none,id=disk,file={self.image.disk},format=raw{self._disk_options()}"
        words = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "EPYC,+svm,+npt"]
        words += ["-smp", "2", "-m", str(self.memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += ["-kernel", str(self._kernel()), "-append", "root=/dev/nvme0n1 rw console=ttyS0 panic=-1 systemd.log_color=0"]
        words += ["-drive", disk, "-device", "nvme,drive=disk,serial=disk", "-device", "virtio-rng-pci"]
        words += ["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=net"]
        words += ["-uuid", "6e8bc430-9c3a-11d9-9669-0800200c9a66"]  # the firmware's, which only root may read inside
        words += ["-serial", f"file:{self._folder}/serial.log", "-qmp", f"unix:{self._folder}/monitor,server=on,wait=off"]
        return _ending_with_us(words)

    def _kernel(self) -> Path:
        return self.image.kernel

    def _disk_options(self) -> str:
        """Nothing that is written is kept."""
        return ",snapshot=on"

    def _connect_monitor(self, deadline: float) -> "_Monitor":
        while True:
            try:
                return _Monitor(self._folder / "monitor")
            except (FileNotFoundError, ConnectionRefusedError):
                assert self._qemu is not None
                if time.monotonic() > deadline or self._qemu.poll() is not None:
                    raise self.failure("QEMU did not start") from None
                time.sleep(0.05)

    def _wait_for_state(self, state: str) -> None:
        assert self._monitor is not None
        deadline = time.monotonic() + _SUSPEND_LIMIT_SECONDS
        while (status := self._monitor.execute("query-status")["status"]) != state:
            if time.monotonic() > deadline:
                raise self.failure(f"the machine is {status}, not {state}")
            time.sleep(0.2)


class _Monitor:
    """QEMU's monitor: one command, one answer. Events are read over."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._unread = b""
        try:
            self._socket.connect(str(path))
            self._messages = self._read()
            next(self._messages)  # its greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        for message in self._messages:
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise MachineError(f"QEMU refused {command}: {message['error']['desc']}")
        raise MachineError(f"QEMU is gone; it was asked for {command}")

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        deadline_seconds = _MONITOR_LIMIT_SECONDS
        while True:
            line, newline, rest = self._unread.partition(b"\n")
            if newline:
                self._unread = rest
                yield json.loads(line)
                continue
            if not select.select([self._socket], [], [], deadline_seconds)[0]:
                raise MachineError(f"QEMU's monitor said nothing for {deadline_seconds} seconds")
            received = self._socket.recv(65536)
            if not received:
                return
            self._unread += received


def _ending_with_us(words: list[str]) -> list[str]:
    """The command line that the kernel kills when the process that started it is gone."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *words]
