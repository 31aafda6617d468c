"""Two commands on one host, each with a cluster of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.processes import finish

pytestmark = pytest.mark.cluster

ASKS_WHETHER_AN_ACTOR_LIVES = """
import ray
from ray.train.v2._internal.state.util import is_actor_alive
from pipeline.cluster import cluster

class Asks:
    def alive(self):
        return is_actor_alive(ray.get_runtime_context().get_actor_id(), timeout=60)

with cluster() as own:
    print(own, ray.get(ray.remote(num_cpus=0)(Asks).remote().alive.remote()))
"""


def test_ray_train_asks_its_own_cluster_who_is_dead(cluster: str) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:  # a short path: Ray keeps sockets below it
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = subprocess.Popen(
            [sys.executable, "-c", ASKS_WHETHER_AN_ACTOR_LIVES],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"RAY_TMPDIR": elsewhere},
            cwd=Path(__file__).parents[2],
        )
        assert finish(command).split() == ["True", "True"]
