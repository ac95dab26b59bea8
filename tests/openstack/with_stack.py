"""Run a command beside a real OpenStack that can touch nothing of this machine: `with_stack.py COMMAND...`, as root.

The cloud, its libvirtd, its guests and the command live in mount, PID and network namespaces of their own, and /tmp is one in memory. The
first process there ends with this one, however it ends, and the kernel then ends everything else: no process, guest, listener or file
is left. See ../integration/libvirt_lab.py. `with_stack.py bash` is a way to look around.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "integration"))

from libvirt_lab import open_lab, why_no_lab  # noqa: E402 - found by the line above

_OWN_TMP = "EXITGUARD_TEST_OWN_TMP"
#: What a caller may have set for another cloud, or for reaching the world through a proxy.
_NOT_PASSED_ON = ("OS_", "EXITGUARD_")
_MOUNT_AND_GO_ON = 'mount --make-rprivate / && mount -t tmpfs -o mode=1777,size=75% tmpfs /tmp && exec "$@"'


def main(command: list[str]) -> int:
    missing = why_no_lab()
    if missing is not None:
        sys.exit(f"No OpenStack can be brought up here. {missing}")
    if _OWN_TMP not in os.environ and not CHECKOUT.is_relative_to("/tmp"):  # noqa: S108 - whatever it is, it is hidden below
        os.environ[_OWN_TMP] = "1"
        words = ["unshare", "--mount", "sh", "-c", _MOUNT_AND_GO_ON, "sh", sys.executable, str(HERE / "with_stack.py"), *command]
        os.execvp("unshare", words)  # noqa: S606 - this very process goes on there, so that whoever waits for it or ends it still does
    passed_on = {name: text for name, text in os.environ.items() if not name.startswith(_NOT_PASSED_ON) and "proxy" not in name.lower()}
    with open_lab() as lab:
        root = lab.root / "openstack"
        root.mkdir(mode=0o755)
        inside = [sys.executable, str(HERE / "nova_stack.py"), str(root), *command]
        # nsenter begins in /; the command is to begin where the caller is.
        begin = ["env", f"--chdir={Path.cwd()}", *inside]
        return subprocess.run(lab.inside(*begin), env=passed_on, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
