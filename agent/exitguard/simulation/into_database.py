"""A simulated fleet straight into a hub's database: its past, with the times at which the hub would have heard of it.

Each batch is taken as a hub takes it. Several processes share the work, each with hosts of its own.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from exitguard.fleet.keys import HostKey, enrolment_sha256, new_enrolment_secret
from exitguard.model.push import Enrolment
from exitguard.policy.schema import Rulebook
from exitguard.simulation.host import SimulatedHost
from exitguard.simulation.keys import Keys, SimulationError
from exitguard.simulation.pushes import Looks
from exitguard.store.hub import HubStore
from exitguard.store.hub_access import add_enrolment, enrol, revoke_enrolment
from exitguard.store.hub_answers import read_hosts

_HOSTS_A_TASK = 50
_A_PAGE = 1000
_MARK = "sim-"


@dataclass(frozen=True)
class _Task:
    database: str
    rulebook: Rulebook
    hosts: tuple[tuple[SimulatedHost, HostKey], ...]
    times: tuple[datetime, ...]
    from_look: int
    secret_sha256: str


def load(
    database: str,
    hosts: Sequence[SimulatedHost],
    keys: Keys,
    rulebook: Rulebook,
    times: Sequence[datetime],
    *,
    from_look: int = 0,
    processes: int,
    told: Callable[[int], None],
) -> int:
    """These looks of all hosts; how many records were taken. Raises SimulationError, StoreError.

    What was loaded before stays as it is, so that a load that was cut off may be begun again.
    """
    secret_sha256 = str(enrolment_sha256(new_enrolment_secret()))
    with HubStore.open(database, connections=1) as store:
        _refuse_real_hosts(store)
        name = f"simulated {secret_sha256[-16:]}"
        with store.writing() as connection:
            until = datetime.now(UTC) + timedelta(days=3650)
            add_enrolment(connection, secret_sha256=secret_sha256, name=name, now=times[0], expires_at=until, hosts=len(hosts))
    pairs = [(host, keys.of(host)) for host in hosts]
    tasks = [
        _Task(database, rulebook, tuple(pairs[begin : begin + _HOSTS_A_TASK]), tuple(times), from_look, secret_sha256)
        for begin in range(0, len(pairs), _HOSTS_A_TASK)
    ]
    taken = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            for done in as_completed([pool.submit(_load, task) for task in tasks]):
                count, loaded = done.result()
                taken += count
                told(loaded)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    with HubStore.open(database, connections=1) as store, store.writing() as connection:
        revoke_enrolment(connection, name, times[-1])
    return taken


def _load(task: _Task) -> tuple[int, int]:
    """How many records were taken, and of how many hosts."""
    taken = 0
    with HubStore.open(task.database, connections=1) as store:
        with store.writing() as connection:
            for host, key in task.hosts:
                asked = Enrolment(secret="simulated", host_id=host.host_id, hostname=host.hostname, key=key.public)  # noqa: S106 - none
                enrol(connection, asked, task.secret_sha256, task.times[0])
        for host, _ in task.hosts:
            looks = Looks(host, task.rulebook)
            for number, at in enumerate(task.times):
                if number < task.from_look:
                    looks.skip()
                    continue
                if host.silent and number > 0:
                    break
                look = looks.at(at)
                answer = store.take(look.batch, received_at=at)
                if answer.send_in_full:
                    answer = store.take(look.in_full, received_at=at)
                if answer.refused:
                    raise SimulationError(f"{host.hostname}: {answer.refused[0].reason}")
                taken += len(look.in_full.records)
    return taken, len(task.hosts)


def _refuse_real_hosts(store: HubStore) -> None:
    """Raises SimulationError where the database has a host that is none of a simulation."""
    after = ""
    while True:
        with store.reading() as connection:
            page = read_hosts(connection, _A_PAGE, after)
        real = next((host for host in page if not (host.hostname or "").startswith(_MARK)), None)
        if real is not None:
            raise SimulationError(
                f"{store.name}: holds host {real.hostname or real.host_id}, which is not simulated. Expected a database for simulated "
                "hosts alone: they are never mixed with others here."
            )
        if len(page) < _A_PAGE:
            return
        after = page[-1].host_id
