"""The configuration files of the stack: the templates of settings/, filled in."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

REGION = "RegionOne"
IDENTITY_URL = "http://127.0.0.1:5000/v3"
REAL_COMPUTE = "compute-a"
FAKE_COMPUTE = "fake-b"
DATABASES = ("keystone", "glance", "placement", "nova_api", "nova_cell0", "nova_cell1")
_TEMPLATES = Path(__file__).with_name("settings")
#: One user with the role admin does for all services.
_SERVICE_USER = """auth_type = password
auth_url = http://127.0.0.1:5000/v3
username = stack
password = $password
project_name = service
user_domain_id = default
project_domain_id = default
region_name = RegionOne"""
# enforce_new_defaults = false is what Zed ships with: its rules know administrators and owners.
_TOKEN_CHECK = f"""[keystone_authtoken]
www_authenticate_uri = http://127.0.0.1:5000
service_token_roles_required = true
{_SERVICE_USER}
[oslo_policy]
enforce_scope = false
enforce_new_defaults = false"""


@dataclass(frozen=True)
class Settings:
    """Where everything of the stack lies, and the one password of its users and services."""

    root: Path
    password: str

    def file(self, name: str) -> Path:
        return self.root / "etc" / name

    def log(self, name: str) -> Path:
        return self.root / "log" / name

    def database(self, name: str) -> str:
        """Where a service finds its database."""
        return f"mysql+pymysql://stack:{self.password}@127.0.0.1:3306/{name}?charset=utf8"

    @property
    def message_bus(self) -> str:
        return f"rabbit://stack:{self.password}@127.0.0.1:5672/"

    def write(self) -> None:
        """Make the directories and all files of it."""
        for folder in ("etc", "log", "home", "rabbit", "run", "images", "instances", "lib/nova/lock", "lib/glance"):
            (self.root / folder).mkdir(parents=True)
        for folder in ("fernet-keys", "credential-keys"):
            self.file(folder).mkdir(mode=0o700)
        for name in ("keystone.conf", "glance-api.conf", "glance-paste.ini", "placement.conf", "rabbitmq.conf", "nova-api-paste.ini"):
            self._fill(name, name)
        # Only the control plane gets databases: a nova-compute that sees them logs errors.
        connections = f"[api_database]\nconnection = {self.database('nova_api')}\n[database]\nconnection = {self.database('nova_cell1')}"
        self._fill("nova.conf", "nova.conf", databases=connections, host=REAL_COMPUTE, driver="libvirt.LibvirtDriver")
        self._fill("nova.conf", "compute.conf", databases="", host=REAL_COMPUTE, driver="libvirt.LibvirtDriver")
        self._fill("nova.conf", "fake.conf", databases="", host=FAKE_COMPUTE, driver="fake.FakeDriver")

    def _fill(self, template: str, name: str, **words: str) -> None:
        file = self.file(name)
        known = {"root": str(self.root), "password": self.password, "file": str(file)}
        blocks = {"service_user": _SERVICE_USER, "token_check": _TOKEN_CHECK}
        filled = {word: Template(block).substitute(known) for word, block in blocks.items()}
        file.touch(mode=0o600)
        file.write_text(Template((_TEMPLATES / template).read_text()).substitute(known | filled | words))
