"""What ansible-playbook finds in its environment: the caller's, but for what would make a run depend on whose it is.

Settings are those of ANSIBLE_CONFIG where the caller has set it, else of /etc/ansible/ansible.cfg, else none: an `ansible.cfg` in the
current directory or a `.ansible.cfg` in the home is never used by accident. Other ANSIBLE_ variables of the caller hold, as they would by
hand; among them ANSIBLE_HOST_KEY_CHECKING, which ansible-runner would switch off. Callback plugins of the caller are not loaded: they run
within Ansible, and could hold it up or say anything in its name.
"""

from collections.abc import Mapping
from pathlib import Path

from exitguard.act.ansible_process.messages import COLLECTED_LIMIT_BYTES, MARK_VARIABLE
from exitguard.act.ansible_process.run_files import RunFiles

_SYSTEM_SETTINGS = Path("/etc/ansible/ansible.cfg")
#: ansible-runner's callback leaves out a result whose text is longer, whatever is in it (`MAX_EVENT_RES`).
RESULT_LIMIT_CHARACTERS = 4 * COLLECTED_LIMIT_BYTES
_NOT_PASSED_ON = frozenset(
    {
        # Callbacks, and what ansible-runner's own callback listens to.
        "ANSIBLE_CALLBACK_PLUGINS",
        "ANSIBLE_STDOUT_CALLBACK",
        "ORIGINAL_STDOUT_CALLBACK",
        "AWX_LIB_DIRECTORY",
        "AD_HOC_COMMAND_ID",
        "JOB_ID",
        "PROJECT_UPDATE_ID",
        # A part of a playbook is another playbook than the one that was planned.
        "ANSIBLE_RUN_TAGS",
        "ANSIBLE_SKIP_TAGS",
        # Made for people; here it is read by a program.
        "ANSIBLE_DEBUG",
        "ANSIBLE_VERBOSITY",
    }
)


def environment_of_process(inherited: Mapping[str, str], files: RunFiles) -> dict[str, str]:
    """What the process that runs Ansible is started with."""
    environment = {name: value for name, value in inherited.items() if name not in _NOT_PASSED_ON}
    if not environment.get("ANSIBLE_CONFIG"):
        environment["ANSIBLE_CONFIG"] = str(_SYSTEM_SETTINGS if _SYSTEM_SETTINGS.is_file() else files.settings)
    return environment | {
        MARK_VARIABLE: files.mark.mark,
        "ANSIBLE_CACHE_PLUGIN": "memory",
        "ANSIBLE_CALLBACKS_ENABLED": "default",  # an empty list is an error; this one is skipped, there is another for stdout
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_LOCAL_TEMP": str(files.temporary),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        # Connections are shared as the caller has it, but none outlives the run: see marked.py.
        "ANSIBLE_SSH_CONTROL_PATH_DIR": files.mark.sockets,
        "MAX_EVENT_RES": str(RESULT_LIMIT_CHARACTERS),
    }


def environment_of_ansible(prepared: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """What ansible-runner made of it, with the caller's word on host keys, or none."""
    environment = dict(prepared)
    if "ANSIBLE_HOST_KEY_CHECKING" not in inherited:
        environment.pop("ANSIBLE_HOST_KEY_CHECKING", None)
    return environment
