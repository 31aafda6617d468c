"""The Ray cluster: joined or started, and asked what it can hold before anything is launched."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import floor, inf

import ray
from ray._private.services import get_ray_address_from_environment
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from pipeline.errors import Mistake
from pipeline.settings import Settings, Workers

COLLECTIVE_TIMEOUT_S = 600
API_SERVER = "RAY_API_SERVER_ADDRESS"


@contextmanager
def cluster() -> Iterator[bool]:
    """A Ray cluster: the one that RAY_ADDRESS names or `ray start` has started here, else one of our own for as long as
    it takes. That of another command's is left alone: it goes when that command ends.

    Yields whether it is our own.
    """
    if ray.is_initialized():  # by whoever called
        yield False
        return
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(COLLECTIVE_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how late an ending is noticed
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    named = os.environ.get("RAY_ADDRESS")
    address = named or started_here()
    own = address is None
    if not own:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, SystemExit):  # Ray exits where what answers at the address is no cluster
            if named:
                raise Mistake(
                    f"RAY_ADDRESS is {named!r}: no Ray cluster answers there; start it, or unset it"
                ) from None
            own = True
    with ExitStack() as after:
        if own:  # one host, which nobody takes away with notice
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            port = after.enter_context(_dashboard())
            ray.init(address="local", dashboard_port=port, **quiet)
        after.callback(ray.shutdown)
        yield own


@contextmanager
def _dashboard() -> Iterator[int]:
    """A port for our cluster's dashboard, known to all processes that are started meanwhile.

    Where another command has a cluster on this host, Ray Train does not know whose to ask whether a trial is over, and
    the trial's CPUs are never freed.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
    try:
        yield port
    finally:
        os.environ.pop(API_SERVER)
        if before is not None:
            os.environ[API_SERVER] = before


def started_here() -> str | None:
    """The address of the cluster that `ray start` has started on this machine, if it answers.

    Ray itself asks the address that a dead one has left behind for more than a minute, and for "auto" takes any cluster
    it sees a process of, another command's own too.
    """
    address: str | None = get_ray_address_from_environment(None, None)
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return None
    return address


def in_a_line(error: RayError) -> str:
    """What Ray says of a lost or failed task, without the traceback."""
    return str(error).strip().splitlines()[-1]


def require_state_api() -> None:
    """Raise Mistake where Ray's dashboard is off.

    Ray Train asks it who is dead; without an answer the CPUs of a stopped trial are never freed.
    """
    try:
        list_actors(limit=1)
    except RayStateApiException:
        raise Mistake(
            "the Ray cluster's dashboard does not answer, and without it stopped trials keep their CPUs; "
            "start Ray with its dashboard (pip install 'ray[default]', no include_dashboard=False)"
        ) from None


def require_room(settings: Settings, own: bool, beside_cpus: float = 0.0) -> int:
    """How many worker groups of the smallest allowed size fit the cluster, each beside a driver of `beside_cpus`.

    Waits `workers.wait_s` for a cluster that may still grow. Raises Mistake where not one fits.
    """
    workers = settings.workers
    deadline = time.monotonic() + (0 if own else workers.wait_s)
    with _asked_for(workers, 0 if own else beside_cpus):
        return _room(settings, deadline, beside_cpus)


@contextmanager
def _asked_for(workers: Workers, beside_cpus: float) -> Iterator[None]:
    """Ask an autoscaler for the workers, so that a cluster scaled to nothing grows; take it back in the end."""
    one = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    request_resources(bundles=[one] * workers.range[0] + ([{"CPU": beside_cpus}] if beside_cpus else []))
    try:
        yield
    finally:
        request_resources(bundles=[])


def _room(settings: Settings, deadline: float, beside_cpus: float) -> int:
    workers = settings.workers
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        groups = _groups(nodes, settings, beside_cpus)
        if groups:
            return groups
        if time.monotonic() >= deadline:
            total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
            raise Mistake(
                f"workers.count is {workers.count!r} with {workers.cpus:g} CPUs and {workers.gpus:g} GPUs each"
                + (f", and {beside_cpus:g} CPUs for the trial's driver" if beside_cpus else "")
                + f": the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes)} nodes; "
                "lower workers.count or workers.cpus, or wait longer for a cluster that grows with workers.wait_s"
            )
        time.sleep(1.0)


def _groups(nodes: Sequence[dict[str, float]], settings: Settings, beside_cpus: float) -> int:
    """Groups that fit when every worker sits on one node; drivers are taken from the CPUs first."""
    workers = settings.workers
    fewest, _ = workers.range
    groups = 0
    while True:
        needed_cpus = (groups + 1) * beside_cpus
        slots = 0
        for node in nodes:
            spared = min(needed_cpus, node.get("CPU", 0.0))
            needed_cpus -= spared
            by_gpu = node.get("GPU", 0.0) / workers.gpus if workers.gpus else inf
            slots += floor(min((node.get("CPU", 0.0) - spared) / workers.cpus + 1e-9, by_gpu))
        if needed_cpus > 0 or slots < (groups + 1) * fewest:
            return groups
        groups += 1
