"""What a fresh Keystone is told: the service user, an ordinary member and a reader, and where the services are."""

from typing import Any

from openstack.connection import Connection
from running_cloud import MEMBER, PROJECT_OF, READER
from stack_settings import REGION

_ENDPOINTS = (
    ("glance", "image", "http://127.0.0.1:9292"),
    ("placement", "placement", "http://127.0.0.1:8778"),
    ("nova", "compute", "http://127.0.0.1:8774/v2.1"),
    ("neutron", "network", "http://127.0.0.1:9696"),
)
_INTERFACES = ("public", "internal", "admin")


def fill_catalogue(administrator: Connection, password: str) -> None:
    """Make users, projects and endpoints."""
    identity: Any = administrator.identity  # of version 3; its type allows for version 2
    projects = {name: identity.create_project(name=name, domain_id="default") for name in ("service", PROJECT_OF[MEMBER])}
    for user, project, roles in (
        ("stack", "service", ("admin", "service")),
        (MEMBER, PROJECT_OF[MEMBER], ("member",)),
        (READER, PROJECT_OF[READER], ("reader",)),
    ):
        made = identity.create_user(name=user, password=password, domain_id="default")
        for name in roles:
            role = identity.find_role(name) or identity.create_role(name=name)
            identity.assign_project_role_to_user(projects[project], made, role)
    for name, kind, address in _ENDPOINTS:
        service = identity.create_service(name=name, type=kind)
        for interface in _INTERFACES:
            identity.create_endpoint(service_id=service.id, interface=interface, url=address, region_id=REGION)
