"""A small zoo on a real cloud: flavors and images that say nothing, off and on, and an instance of every kind that matters.

Everything carries a prefix, by which it is found and deleted again, whoever made it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from openstack.connection import Connection
from openstack.exceptions import NotFoundException
from running_cloud import ADMINISTRATOR, MEMBER, RunningCloud

#: What a flavor's or image's word is called in names, and the text that is stored for it.
SAYS = {"silent": None, "off": "false", "on": "true"}
REAL_COMPUTE = "compute-a"
_LIMIT_SECONDS = 240
_MEMORY_MIB = 64
#: More than any compute host of the tests has, whatever it overcommits.
_MEMORY_OF_NO_HOST_MIB = 100_000_000


@dataclass(frozen=True)
class Specimen:
    """An instance of the zoo: what its flavor and image say, whose it is, and what happens to it once it is there."""

    name: str
    flavor: str = "silent"
    image: str = "silent"
    owner: str = MEMBER
    #: Its name in the cloud where that is not its name in the zoo.
    title: str | None = None
    #: Its status once it is built, or is not.
    becomes: str = "ACTIVE"
    then: "Callable[[Zoo, str], None] | None" = None


@dataclass
class Zoo:
    """What is there of one prefix: ids by the words of names (`silent`, `off`, `on`), instances by their name in the zoo."""

    cloud: RunningCloud
    prefix: str
    administrator: Connection
    connections: dict[str, Connection]
    flavors: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)

    # --- what instances are made of ---------------------------------------------------------------------------------------------

    def make_flavor(self, name: str, says: str | None, *, memory_mib: int = _MEMORY_MIB) -> str:
        compute = self.administrator.compute
        made = compute.create_flavor(name=f"{self.prefix}{name}", ram=memory_mib, vcpus=1, disk=1)
        self.flavors[name] = made.id
        if says is not None:
            compute.create_flavor_extra_specs(made, {"hw:pmu": says})
        return str(made.id)

    def make_image(self, name: str, says: str | None) -> str:
        # img_hv_type keeps those who may not name a host off the fake compute.
        properties: dict[str, Any] = {"img_hv_type": "qemu", **({} if says is None else {"hw_pmu": says})}
        made = self.administrator.image.create_image(
            f"{self.prefix}{name}", data=bytes(1 << 20), disk_format="raw", container_format="bare", visibility="public", **properties
        )
        self.images[name] = made.id
        return str(made.id)

    # --- instances --------------------------------------------------------------------------------------------------------------

    def order(self, specimen: Specimen) -> str:
        """Ask for an instance; the answer comes before it is built. The owner may name a host only as the administrator."""
        request = {
            "name": f"{self.prefix}{specimen.title or specimen.name}",
            "flavorRef": self.flavors[specimen.flavor],
            "imageRef": self.images[specimen.image],
            "networks": "none",
        }
        if specimen.owner == ADMINISTRATOR:
            request["availability_zone"] = f"nova:{REAL_COMPUTE}"
        answer = self.connections[specimen.owner].compute.post("/servers", json={"server": request})
        if answer.status_code >= 400:
            raise RefusedByNovaError(answer.status_code, answer.text)
        uuid = str(answer.json()["server"]["id"])
        self.servers[specimen.name] = uuid
        return uuid

    def populate(self, specimens: tuple[Specimen, ...]) -> None:
        """All of them, built side by side, and then what happens to each."""
        for specimen in specimens:
            self.order(specimen)
        for specimen in specimens:
            self.settled(self.servers[specimen.name], specimen.becomes)
            if specimen.then is not None:
                specimen.then(self, self.servers[specimen.name])

    def server(self, uuid: str) -> dict[str, Any]:
        """What Nova tells the administrator of an instance."""
        answer = self.administrator.compute.get(f"/servers/{uuid}")
        if answer.status_code >= 400:
            raise RefusedByNovaError(answer.status_code, answer.text)
        shown: dict[str, Any] = answer.json()["server"]
        return shown

    def settled(self, uuid: str, wanted: str) -> dict[str, Any]:
        """The instance, once Nova does nothing with it any more and its status is the wanted one."""
        deadline = time.monotonic() + _LIMIT_SECONDS
        while True:
            shown = self.server(uuid)
            status = shown["status"]
            if (shown["OS-EXT-STS:task_state"], status) == (None, wanted):
                return shown
            assert status != "ERROR", f"{shown['name']} is to be {wanted}: {shown.get('fault')}"
            assert time.monotonic() < deadline, f"{shown['name']} is to be {wanted}, and is {status} ({shown['OS-EXT-STS:task_state']})"
            time.sleep(0.3)

    def act(self, uuid: str, action: dict[str, Any]) -> None:
        """Ask for an action, as the administrator. Raises RefusedByNovaError where Nova refuses it at once."""
        answer = self.administrator.compute.post(f"/servers/{uuid}/action", json=action)
        if answer.status_code >= 400:
            raise RefusedByNovaError(answer.status_code, answer.text)

    def stop(self, uuid: str) -> None:
        self.act(uuid, {"os-stop": None})
        self.settled(uuid, "SHUTOFF")

    def start(self, uuid: str) -> None:
        self.act(uuid, {"os-start": None})
        self.settled(uuid, "ACTIVE")

    def hard_reboot(self, uuid: str) -> None:
        self.act(uuid, {"reboot": {"type": "HARD"}})
        self.settled(uuid, "ACTIVE")

    def lock(self, uuid: str) -> None:
        self.act(uuid, {"lock": {"locked_reason": "its owner measures"}})

    def shelve(self, uuid: str) -> None:
        self.act(uuid, {"shelve": None})
        self.settled(uuid, "SHELVED_OFFLOADED")

    def begin_resize(self, uuid: str, flavor: str) -> None:
        """A resize that is done and not yet confirmed."""
        self.act(uuid, {"resize": {"flavorRef": self.flavors[flavor]}})
        self.settled(uuid, "VERIFY_RESIZE")

    def set_stored_image_property(self, uuid: str, text: str) -> None:
        """What nova_instance_pmu_off does, by hand: of a stopped instance."""
        done = self.cloud.run_nova_manage("image_property", "set", uuid, "--property", f"hw_pmu={text}")
        assert done.returncode == 0, done.stdout + done.stderr

    # --- the end ----------------------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Delete everything that carries the prefix, and return when it is gone."""
        for uuid in self._found("/servers/detail?all_tenants=1", "servers"):
            self._forgive_missing(self.administrator.compute.delete_server, uuid, force=True)
        deadline = time.monotonic() + _LIMIT_SECONDS
        while left := list(self._found("/servers/detail?all_tenants=1", "servers")):
            assert time.monotonic() < deadline, f"not deleted: {left}"
            time.sleep(0.3)
        for identity in list(self._found("/os-aggregates", "aggregates")):
            self._empty_and_delete_aggregate(str(identity))
        for identity in list(self._found("/flavors/detail?is_public=None", "flavors")):
            self._forgive_missing(self.administrator.compute.delete_flavor, identity)
        for image in list(self.administrator.image.images()):
            if image.name and image.name.startswith(self.prefix):
                self._forgive_missing(self.administrator.image.delete_image, image.id)
        left_in_libvirt = set(self.cloud.virsh("list", "--all", "--uuid").split()) & set(self.servers.values())
        assert not left_in_libvirt, f"Nova deleted these instances and left their domains: {left_in_libvirt}"

    def _found(self, path: str, key: str) -> Iterator[Any]:
        answer = self.administrator.compute.get(path)
        assert answer.status_code == 200, answer.text
        for thing in answer.json()[key]:
            if thing["name"].startswith(self.prefix):
                yield thing["id"]

    def _empty_and_delete_aggregate(self, identity: str) -> None:
        compute = self.administrator.compute
        for host in compute.get(f"/os-aggregates/{identity}").json()["aggregate"]["hosts"]:
            compute.remove_host_from_aggregate(identity, host)
        compute.delete_aggregate(identity)

    @staticmethod
    def _forgive_missing(delete: Callable[..., Any], *words: Any, **options: Any) -> None:
        try:
            delete(*words, **options)
        except NotFoundException:
            return


class RefusedByNovaError(Exception):
    """Nova refused a request at once."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def open_zoo(cloud: RunningCloud, prefix: str) -> Zoo:
    """An empty zoo with the usual three flavors and three images."""
    administrator = cloud.connect()
    zoo = Zoo(cloud, prefix, administrator, {ADMINISTRATOR: administrator, MEMBER: cloud.connect(MEMBER)})
    zoo.clear()
    for name, says in SAYS.items():
        zoo.make_flavor(name, says)
        zoo.make_image(name, says)
    # Glance and Nova tell whole seconds: of an image and an instance of the same second nobody can tell which was there first.
    time.sleep(1.1)
    return zoo


# --- what happens to a specimen once it is there ------------------------------------------------------------------------------------


def edited_behind_nova(zoo: Zoo, uuid: str) -> None:
    zoo.cloud.define_with_pmu(uuid, "off")


def remedied_by_hand(zoo: Zoo, uuid: str) -> None:
    zoo.stop(uuid)
    zoo.set_stored_image_property(uuid, "false")
    zoo.start(uuid)


def stopped(zoo: Zoo, uuid: str) -> None:
    zoo.stop(uuid)


def stopped_and_locked(zoo: Zoo, uuid: str) -> None:
    zoo.stop(uuid)
    zoo.lock(uuid)


def shelved(zoo: Zoo, uuid: str) -> None:
    zoo.shelve(uuid)


def resized_to_off(zoo: Zoo, uuid: str) -> None:
    zoo.begin_resize(uuid, "off")


def orphaned_of_its_flavor(zoo: Zoo, uuid: str) -> None:
    assert zoo.server(uuid)["flavor"]["original_name"] == f"{zoo.prefix}gone"
    zoo.administrator.compute.delete_flavor(zoo.flavors.pop("gone"))


#: The kinds whose origin has to be told apart.
EIGHT = (
    Specimen("flavor-off", flavor="off"),
    Specimen("flavor-on", flavor="on"),
    Specimen("image-off", image="off"),
    Specimen("image-on", image="on"),
    Specimen("both-silent"),
    Specimen("both-off", flavor="off", image="off"),
    Specimen("edited", then=edited_behind_nova),
    Specimen("remedied", then=remedied_by_hand),
)

#: States and names that readers must survive; Nova takes printable characters only. What they are made of: make_strange_parts().
STRANGE = (
    Specimen("stopped-locked", then=stopped_and_locked),
    Specimen("shelved", then=shelved),
    Specimen("resized", then=resized_to_off),
    Specimen("no-valid-host", flavor="huge", becomes="ERROR"),
    Specimen("flavor-gone", flavor="gone", owner=ADMINISTRATOR, then=orphaned_of_its_flavor),
    Specimen("markup", title="=1+1|<b>[red]\"&' \u00fc", owner=ADMINISTRATOR),
)


def make_strange_parts(zoo: Zoo) -> None:
    zoo.make_flavor("gone", None)
    zoo.make_flavor("huge", None, memory_mib=_MEMORY_OF_NO_HOST_MIB)
