"""Which cluster is joined, and how soon that is known."""

import socket
import time
from pathlib import Path

import pytest
from ray._private import services

from pipeline.cluster import started_here
from tests.cluster.processes import free_port


@pytest.fixture
def left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's note of the cluster started last, on a machine where no Ray process runs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    note = tmp_path / "ray" / "ray_current_cluster"
    note.parent.mkdir()
    return note


def test_the_address_of_a_dead_cluster_is_seen_through_at_once(left_behind: Path) -> None:
    left_behind.write_text(f"127.0.0.1:{free_port()}")
    began = time.monotonic()
    assert started_here() is None
    assert time.monotonic() - began < 5


def test_an_address_that_answers_is_a_cluster(left_behind: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        left_behind.write_text(address)
        assert started_here() == address


def test_where_ray_knows_no_address_there_is_no_cluster(left_behind: Path) -> None:
    assert started_here() is None


def test_the_cluster_of_another_command_is_left_alone(left_behind: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: {address})  # a process of it is seen
        assert started_here() is None
