"""Two gloo ranks against one process on the whole batch. X one image, Z latent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vaegan import build, config
from vaegan.objective import players, turns, weights_at
from vaegan.step import Agree, Batch, Noise, alone, step

Case = tuple[str, config.Networks, config.Objective, config.Optimizers]
Shape = tuple[int, int, int]
Trained = dict[str, Tensor]
"""Weights, then each step's terms as `step/turn/term`, of each image or, as a gradient's norm, one number."""

RANKS, UPDATES, GLOBAL_BATCH = 2, 5, 6


def assert_two_ranks_equal_one(cases: list[Case], tmp_path: Path, image_shape: Shape, parts: int = 1) -> None:
    """Weights and terms after 5 updates in float64, to 1e-10 absolute or relative; one start of the ranks for all.

    parts: in how many the ranks take their shares; the one process takes the whole.
    """
    halves = on_two_ranks(train_all, tmp_path, cases, image_shape, parts)
    for number, case in enumerate(cases):
        whole = train(case, image_shape)
        ranks = [half[number] for half in halves]
        for name, value in whole.items():
            found = [rank[name] for rank in ranks]
            if "/" in name and value.ndim:
                found = [torch.cat(found)]
            for tensor in found:
                torch.testing.assert_close(
                    tensor, value, rtol=1e-10, atol=1e-10, msg=lambda text, at=(case[0], name): f"{at}: {text}"
                )


def train(
    case: Case,
    image_shape: Shape,
    rank: int = 0,
    ranks: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    agree: Agree = alone,
    parts: int = 1,
) -> Trained:
    """5 updates on this rank's contiguous share of images and noise, taken in so many parts."""
    _, networks, objective, optimizers = case
    torch.manual_seed(0)
    with in_float64():
        model = build(networks, objective.likelihood, image_shape)
    everyone = players(model, objective, optimizers, wrap)
    generator = torch.Generator().manual_seed(1)
    share = slice(rank * GLOBAL_BATCH // ranks, (rank + 1) * GLOBAL_BATCH // ranks)
    logged: Trained = {}
    for update in range(UPDATES):
        images = torch.rand(GLOBAL_BATCH, *image_shape, generator=generator, dtype=torch.float64)
        posterior, prior = torch.randn(2, GLOBAL_BATCH, networks.latent, generator=generator, dtype=torch.float64)
        directions = images.roll(1, 0) - 0.5
        terms = step(
            turns(objective),
            everyone,
            Batch(images[share]),
            Noise(posterior[share], prior[share], directions[share] if objective.penalty else None),
            weights_at(objective, update * GLOBAL_BATCH),
            agree,
            parts=parts,
        )
        logged |= {f"{update}/{name}": term for name, term in terms.items()}
    return model.state_dict() | logged


def train_all(rank: int, cases: list[Case], image_shape: Shape, parts: int) -> list[Trained]:
    """Every case on one of two ranks."""
    wrap = partial(DistributedDataParallel, gradient_as_bucket_view=True)
    return [train(case, image_shape, rank, RANKS, wrap, mean_over_ranks, parts) for case in cases]


@contextmanager
def in_float64() -> Iterator[None]:
    """Weights drawn in here are float64 draws; a float32 draw from the same seed is another one."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def mean_over_ranks(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def on_two_ranks(work: Callable[..., object], tmp_path: Path, *arguments: object) -> list[list[Trained]]:
    """What `work(rank, *arguments)` returns on each of two processes: tensors in lists and dicts."""
    mp.spawn(_rank, (work, tmp_path, arguments), nprocs=RANKS)
    return [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _rank(rank: int, work: Callable[..., object], tmp_path: Path, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(tmp_path / "rendezvous").as_uri(),
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(work(rank, *arguments), tmp_path / f"rank-{rank}.pt")
    finally:
        dist.destroy_process_group()
