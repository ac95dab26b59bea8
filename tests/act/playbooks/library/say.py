"""A module that does as it is told: what it returns, how long it takes, and how hard it is to end."""

import os
import signal
import sys
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.spoken import GREETING


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "result": {"type": "raw", "default": {}},
            "output_bytes": {"type": "int", "default": 0},
            "collected_bytes": {"type": "int", "default": 0},
            "levels": {"type": "int", "default": 0},
            "raw": {"type": "str", "default": ""},
            "stubborn": {"type": "bool", "default": False},
            "hang_after": {"type": "path"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    if wanted["raw"]:
        sys.stdout.write(wanted["raw"])  # in place of an answer
        sys.stdout.flush()
        os._exit(0)
    if wanted["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()  # a child in a session of its own, as stubborn
    if wanted["hang_after"]:
        Path(wanted["hang_after"]).write_text(str(os.getpid()))
        time.sleep(1000)
    result = dict(wanted["result"], greeting=GREETING)
    if wanted["output_bytes"]:
        result["stdout"] = "x" * wanted["output_bytes"]
    if wanted["collected_bytes"]:
        result["exitguard"] = {"text": "x" * wanted["collected_bytes"]}
    if wanted["levels"]:
        deep = {}
        for _ in range(wanted["levels"]):
            deep = {"deeper": deep}
        result["exitguard"] = deep
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
