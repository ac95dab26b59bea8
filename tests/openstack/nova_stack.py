"""A small but genuine OpenStack: Keystone, Glance, Placement and Nova of Debian, with a nova-compute on the libvirt at hand and a fake one.

Everything listens on the loopback, at the usual ports, and is a child of this process; so it belongs in namespaces of its own, with a
libvirtd of its own. with_stack.py makes these and starts this file there:

    nova_stack.py ROOT COMMAND...       runs COMMAND with the variables that running_cloud.py reads
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openstack.exceptions
from running_cloud import LIBVIRT_VARIABLE, MICROVERSION, NOVA_MANAGE_VARIABLE, RunningCloud
from stack_contents import fill_catalogue
from stack_processes import PYTHON, Services, StackError, Step, entry_point
from stack_settings import DATABASES, FAKE_COMPUTE, IDENTITY_URL, REAL_COMPUTE, REGION, Settings

HERE = Path(__file__).parent
_HYPERVISORS_LIMIT_SECONDS = 180
_KEPT_LOGS = HERE.parents[1] / ".local/openstack-log"


@contextmanager
def open_stack(root: Path) -> Iterator[RunningCloud]:
    """A cloud that runs below `root`, which must be empty. Raises StackError where a part does not come up."""
    settings = Settings(root, secrets.token_hex(16))
    settings.write()
    services = Services(settings)
    try:
        _start_message_bus(services, settings)
        _start_database(services, settings)
        _make_schemas(settings)
        cloud = _cloud(settings)
        services.start_wsgi("keystone", 5000, "/usr/bin/keystone-wsgi-public", 2, {"OS_KEYSTONE_CONFIG_DIR": str(settings.root / "etc")})
        services.wait_for_http("keystone", IDENTITY_URL)
        fill_catalogue(cloud.connect(), settings.password)
        _start_services(services, settings)
        _wait_for_hypervisors(settings, cloud)
        yield cloud
    finally:
        services.end()


def _cloud(settings: Settings) -> RunningCloud:
    variables = {
        "OS_AUTH_URL": IDENTITY_URL,
        "OS_IDENTITY_API_VERSION": "3",
        "OS_USERNAME": "admin",
        "OS_PASSWORD": settings.password,
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": REGION,
        "OS_COMPUTE_API_VERSION": MICROVERSION,
    }
    home = f"HOME={settings.root / 'home'}"
    clean = ["/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", home, "LANG=C.UTF-8", "PYTHONWARNINGS=ignore"]
    return RunningCloud(variables, (*clean, *_nova_manage(settings)), "qemu:///system")


def _nova_manage(settings: Settings, *words: str) -> list[str]:
    return [*entry_point("nova.cmd.manage"), "--config-file", str(settings.file("nova.conf")), *words]


def _start_message_bus(services: Services, settings: Settings) -> None:
    # Erlang's port mapper would else be forked off by RabbitMQ, and listen on every address.
    services.start("epmd", ["/usr/bin/epmd", "-address", "127.0.0.1", "-port", "4369"])
    services.wait_for("epmd", lambda: _is_open(4369))
    quiet = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
    services.start(
        "rabbitmq",
        # The program below the wrapper of /usr/sbin, which insists on the system's directories.
        ["/usr/lib/rabbitmq/bin/rabbitmq-server"],
        {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "stack@localhost",  # independent of this machine's name
            "RABBITMQ_CONFIG_FILE": str(settings.file("rabbitmq.conf")),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(settings.file("enabled_plugins")),
            "RABBITMQ_MNESIA_BASE": str(settings.root / "rabbit"),
            "RABBITMQ_LOG_BASE": str(settings.root / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(settings.root / "run/rabbitmq.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": quiet,
        },
    )


def _start_database(services: Services, settings: Settings) -> None:
    # SQLite does not do: Nova reads before it writes in one transaction, which SQLite then refuses as locked.
    data = settings.root / "database"
    install = ["/usr/bin/mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}"]
    Step(settings, "mariadb-install-db", [*install, "--auth-root-authentication-method=socket", "--skip-test-db"]).done()
    words = ["/usr/sbin/mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={_socket(settings)}"]
    words += ["--bind-address=127.0.0.1", "--skip-name-resolve", "--performance-schema=OFF", "--innodb-buffer-pool-size=64M"]
    words += ["--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=OFF", "--max-connections=400"]
    words += ["--skip-log-bin", "--character-set-server=utf8mb3", "--collation-server=utf8mb3_general_ci"]
    services.start("mariadb", words)
    services.wait_for("mariadb", lambda: _is_open(3306))


def _socket(settings: Settings) -> Path:
    return settings.root / "run/mariadb.sock"


def _make_schemas(settings: Settings) -> None:
    """Databases and their tables; the services have nothing to do with each other, so they are filled side by side."""
    statements = [f"CREATE DATABASE {name}; GRANT ALL ON {name}.* TO stack@'%' IDENTIFIED BY '{settings.password}';" for name in DATABASES]
    client = ["/usr/bin/mariadb", "--no-defaults", "--user=root", f"--socket={_socket(settings)}"]
    Step(settings, "create-databases", client, "\n".join(statements)).done()
    keystone = ["/usr/bin/keystone-manage", "--config-file", str(settings.file("keystone.conf"))]
    glance = [*entry_point("glance.cmd.manage"), "--config-file", str(settings.file("glance-api.conf"))]
    placement = ["/usr/bin/placement-manage", "--config-file", str(settings.file("placement.conf"))]
    beside = [Step(settings, "keystone-db-sync", [*keystone, "db_sync"]), Step(settings, "glance-db-sync", [*glance, "db", "sync"])]
    beside.append(Step(settings, "placement-db-sync", [*placement, "db", "sync"]))
    for name, words in (
        ("nova-api-db-sync", ["api_db", "sync"]),
        ("nova-map-cell0", ["cell_v2", "map_cell0", "--database_connection", settings.database("nova_cell0")]),
        ("nova-create-cell", ["cell_v2", "create_cell", "--name", "cell1", *_cell_connections(settings)]),
        ("nova-db-sync", ["db", "sync"]),
    ):
        Step(settings, name, _nova_manage(settings, *words)).done()
    for step in beside:
        step.done()
    root_keys = ["--keystone-user", "root", "--keystone-group", "root"]
    Step(settings, "keystone-fernet", [*keystone, "fernet_setup", *root_keys]).done()
    Step(settings, "keystone-credential", [*keystone, "credential_setup", *root_keys]).done()
    urls = [word for interface in ("public", "internal", "admin") for word in (f"--bootstrap-{interface}-url", IDENTITY_URL)]
    first = ["bootstrap", "--bootstrap-password", settings.password, "--bootstrap-region-id", REGION, *urls]
    Step(settings, "keystone-bootstrap", [*keystone, *first]).done()


def _cell_connections(settings: Settings) -> list[str]:
    return ["--database_connection", settings.database("nova_cell1"), "--transport-url", settings.message_bus]


def _start_services(services: Services, settings: Settings) -> None:
    services.start("empty-network", [PYTHON, str(HERE / "empty_network.py"), "9696"])
    services.start("glance-api", [*entry_point("glance.cmd.api"), "--config-file", str(settings.file("glance-api.conf"))])
    services.start_wsgi("placement", 8778, "/usr/bin/placement-api", 1, {"OS_PLACEMENT_CONFIG_DIR": str(settings.root / "etc")})
    services.wait_for("rabbitmq", lambda: _is_open(5672))
    services.wait_for_http("placement", "http://127.0.0.1:8778/")
    services.wait_for_http("glance-api", "http://127.0.0.1:9292/")
    compute = [PYTHON, str(HERE / "nova_compute.py")]
    for name, words, config in (
        ("nova-conductor", entry_point("nova.cmd.conductor"), "nova.conf"),
        ("nova-scheduler", entry_point("nova.cmd.scheduler"), "nova.conf"),
        ("nova-api", entry_point("nova.cmd.api_os_compute"), "nova.conf"),
        ("nova-compute", compute, "compute.conf"),
        ("nova-compute-fake", compute, "fake.conf"),
    ):
        services.start(name, [*words, "--config-file", str(settings.file(config)), "--log-file", str(settings.log(f"{name}.log"))])
    services.wait_for_http("nova-api", "http://127.0.0.1:8774/")


def _wait_for_hypervisors(settings: Settings, cloud: RunningCloud) -> None:
    """Return when both computes are there, up, and known to their cell."""
    connection = cloud.connect()
    deadline = time.monotonic() + _HYPERVISORS_LIMIT_SECONDS
    while True:
        Step(settings, "discover-hosts", _nova_manage(settings, "cell_v2", "discover_hosts")).done()
        try:
            shown = connection.compute.get("/os-hypervisors/detail").json()
        except openstack.exceptions.SDKException as error:
            shown = {"error": str(error)}
        up = {hypervisor["service"]["host"] for hypervisor in shown.get("hypervisors", []) if hypervisor["state"] == "up"}
        if up == {REAL_COMPUTE, FAKE_COMPUTE}:
            return
        if time.monotonic() > deadline:
            log = settings.log("nova-compute.log").read_text(errors="replace")[-3000:]
            raise StackError(f"not both computes came up: {shown}\n{log}")
        time.sleep(1)


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def main(root: Path, command: list[str]) -> int:
    """The command's exit code. Where it or the stack failed, the stack's logs are kept in the checkout."""
    began = time.monotonic()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    status = 1
    try:
        with open_stack(root) as cloud:
            told = {**cloud.variables, NOVA_MANAGE_VARIABLE: json.dumps(cloud.nova_manage), LIBVIRT_VARIABLE: cloud.libvirt_uri}
            sys.stderr.write(f"OpenStack runs after {time.monotonic() - began:.0f} s\n")
            status = subprocess.run(command, env=os.environ | told, check=False).returncode
    finally:
        if status != 0:
            shutil.rmtree(_KEPT_LOGS, ignore_errors=True)
            shutil.copytree(root / "log", _KEPT_LOGS)
            sys.stderr.write(f"The logs of this OpenStack are kept in {_KEPT_LOGS}\n")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
    except StackError as error:
        sys.exit(f"The OpenStack of the tests did not come up: {error}")
