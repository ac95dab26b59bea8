"""A cloud that runs, as the tests reach it: its users, nova-manage, and libvirt on its compute host."""

import json
import os
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import openstack
from openstack.connection import Connection

ADMINISTRATOR = "admin"
MEMBER = "demo"
READER = "auditor"
#: The project of each user.
PROJECT_OF = {ADMINISTRATOR: "admin", MEMBER: "demo", READER: "demo"}
#: Of Nova 26 (Zed), less one; what it is asked in unless a test asks for another.
MICROVERSION = "2.92"
NOVA_MANAGE_VARIABLE = "EXITGUARD_TEST_NOVA_MANAGE"
LIBVIRT_VARIABLE = "EXITGUARD_TEST_LIBVIRT_URI"
_LIMIT_SECONDS = 120


@dataclass(frozen=True)
class RunningCloud:
    """The administrator's OS_ variables (every user has the same password), the words of nova-manage, and the compute host's libvirt."""

    variables: Mapping[str, str]
    nova_manage: tuple[str, ...]
    libvirt_uri: str

    def variables_of(self, user: str) -> dict[str, str]:
        """The OS_ variables of a user."""
        return {**self.variables, "OS_USERNAME": user, "OS_PROJECT_NAME": PROJECT_OF[user]}

    def connect(self, user: str = ADMINISTRATOR) -> Connection:
        """A connection of openstacksdk's, with nothing borrowed from the environment or a clouds.yaml."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the SDK's own dependencies deprecate is not ours to fix
            return openstack.connect(
                load_yaml_config=False,
                load_envvars=False,
                auth_url=self.variables["OS_AUTH_URL"],
                username=user,
                password=self.variables["OS_PASSWORD"],
                project_name=PROJECT_OF[user],
                user_domain_id="default",
                project_domain_id="default",
                region_name=self.variables["OS_REGION_NAME"],
                compute_api_version=MICROVERSION,
            )

    def run_nova_manage(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """What nova-manage did, whatever its exit code."""
        return subprocess.run([*self.nova_manage, *words], capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS)

    def virsh(self, *words: str) -> str:
        """What virsh prints on the compute host; raises where it fails."""
        command = ["virsh", "-q", "-c", self.libvirt_uri, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LIMIT_SECONDS).stdout

    def domain_xml(self, uuid: str, *, inactive: bool = False) -> str:
        """What libvirt holds of an instance: of its run, or of its next start."""
        return self.virsh("dumpxml", *(["--inactive"] if inactive else []), "--domain", uuid)

    def pmu_element(self, uuid: str, *, inactive: bool = False) -> str:
        """`on`, `off`, or `absent`."""
        found = ET.fromstring(self.domain_xml(uuid, inactive=inactive)).find("features/pmu")  # noqa: S314 - of our own libvirtd
        return "absent" if found is None else found.get("state", "on")

    def define_with_pmu(self, uuid: str, state: str) -> None:
        """Edit a definition behind Nova's back, as `virsh edit` would."""
        edited = self.domain_xml(uuid, inactive=True).replace("<features>", f"<features>\n    <pmu state='{state}'/>", 1)
        command = ["virsh", "-q", "-c", self.libvirt_uri, "define", "/dev/stdin"]
        subprocess.run(command, input=edited, capture_output=True, text=True, check=True, timeout=_LIMIT_SECONDS)


def cloud_of_environment(variables: Mapping[str, str] = os.environ) -> RunningCloud:
    """A cloud that somebody else brought up: OS_ variables of its administrator, EXITGUARD_TEST_NOVA_MANAGE and ..._LIBVIRT_URI."""
    words: Any = json.loads(variables[NOVA_MANAGE_VARIABLE])
    credentials = {name: text for name, text in variables.items() if name.startswith("OS_")}
    return RunningCloud(credentials, tuple(words), variables.get(LIBVIRT_VARIABLE, "qemu:///system"))
