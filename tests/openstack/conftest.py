"""Tests beside a real OpenStack. Not collected unless one is there: `make test-openstack` brings one up for them (with_stack.py).

For a cloud that somebody else runs, set what running_cloud.py reads: OS_ variables of its administrator, EXITGUARD_TEST_NOVA_MANAGE,
EXITGUARD_TEST_LIBVIRT_URI. The tests make flavors, images and instances under prefixes of their own, and delete them.
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]  # the modules beside this file and there that hold no tests

#: As running_cloud.py names it, which needs openstacksdk.
_NOVA_MANAGE_VARIABLE = "EXITGUARD_TEST_NOVA_MANAGE"
collect_ignore_glob = [] if _NOVA_MANAGE_VARIABLE in os.environ else ["test_*.py"]

#: What openstacksdk calls of its own that it means to remove.
_OF_THE_SDK = ("ignore::openstack.warnings.RemovedInSDK50Warning", "ignore::openstack.warnings.RemovedInSDK60Warning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)
            item.add_marker(pytest.mark.filterwarnings(*_OF_THE_SDK))


if not collect_ignore_glob:
    from control_node import ControlNode, control_node
    from running_cloud import RunningCloud, cloud_of_environment

    @pytest.fixture(scope="session")
    def cloud() -> RunningCloud:
        """The cloud that runs."""
        return cloud_of_environment()

    @pytest.fixture(scope="module")
    def node(cloud: RunningCloud, tmp_path_factory: pytest.TempPathFactory) -> ControlNode:
        """A control node of its own for each file of tests: clouds.yaml, policy, records and facts."""
        return control_node(cloud, tmp_path_factory.mktemp("control-node"))
