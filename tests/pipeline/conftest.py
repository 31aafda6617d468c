"""The digits, prepared once for all tests, and one thread. The pipeline computes in float32, so its tests do."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.data import prepare as preparing
from pipeline.data.prepare import prepare
from pipeline.data.sources import open_source


@pytest.fixture(autouse=True)
def float32_on_one_thread() -> Iterator[None]:
    assert torch.get_default_dtype() == torch.float32
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """scikit-learn's digits at 32 px, one shard a split; not to be written to."""
    out = tmp_path_factory.mktemp("data") / "digits"
    prepare(open_source("digits"), "digits", out, size=32, progress=False)
    return str(out)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same in shards of 100 rows, 102,400 bytes of pixels each; not to be written to."""
    out = tmp_path_factory.mktemp("data") / "shards"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "SHARD_ROWS", 100)
        prepare(open_source("digits"), "digits", out, size=32, progress=False)
    return str(out)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run: making its tables takes seconds, copying it none."""
    from pipeline.tracking import connect

    folder = tmp_path_factory.mktemp("mlflow")
    connect(f"sqlite:///{folder}/mlflow.db", "none")
    return folder / "mlflow.db"


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of an MLflow of this test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"
