"""Processes that tests start, wait for and kill."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path


def finish(process: "subprocess.Popen[str]", seconds: float = 600) -> str:
    """What a command that succeeds printed."""
    output, errors = process.communicate(timeout=seconds)
    assert process.returncode == 0, errors or output
    return output


def refusal(process: "subprocess.Popen[str]", seconds: float = 90) -> str:
    """The one line of a command that refuses."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 2, errors
    assert errors.startswith("vaegan: ") and errors.count("\n") == 1, errors
    return errors


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL for a command and all it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Until something is so."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def mlflow_server(folder: Path, port: int) -> "subprocess.Popen[str]":
    """A real MLflow server on a database of its own, once it answers."""
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    wait_for(answers)
    return server
