"""Float64, one thread and one seed for every test of the mathematics."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def float64_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)
