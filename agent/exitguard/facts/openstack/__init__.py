"""What an OpenStack cloud's API shows of its flavors, images, servers and compute hosts. The only package that imports openstacksdk."""

from exitguard.facts.openstack.cloud import read_cloud
from exitguard.facts.openstack.errors import CloudError
from exitguard.facts.openstack.request import CloudRequest

__all__ = ["CloudError", "CloudRequest", "read_cloud"]
