"""What the ranks of a run do together: share work, agree, and average gradients."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among `world` like it; alone, every agreement is with itself."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's contiguous part of `count` things; world divides it."""
        size = count // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """A learner whose gradients are averaged over the ranks, bucket by bucket while its backward goes on.

        Gradients are views of what is sent. No static graph: that would corrupt alternating gradients without a word.
        """
        if self.world == 1:
            return network
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def add(self, *tensors: Tensor) -> None:
        """Sum each over the ranks, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over the ranks."""
        if self.world == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def first_says(self, number: int) -> int:
        """What rank 0 passed, on every rank."""
        said = torch.tensor(number, device=self.device)
        if self.world > 1:
            dist.broadcast(said, 0)
        return int(said)

    def first_tells(self, text: str) -> str:
        """The same for a text, which must not be empty."""
        said = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        if self.world > 1:
            length = self.first_says(len(said))
            said = said if self.first else said.new_empty(length)
            dist.broadcast(said, 0)
        return bytes(said.tolist()).decode()

    def any(self, flag: bool) -> bool:
        """Whether it holds on some rank."""
        raised = torch.tensor(float(flag), device=self.device)
        self.add(raised)
        return bool(raised)
