"""All features of a set of images, for figures that compare image with image. N images, F features, B batch."""

import torch
from torch import Tensor


class Rows:
    """Features in the order of their images, float32. Nobody else fills the same rows, so merging is adding."""

    def __init__(self, count: int, features: int, device: torch.device | str = "cpu") -> None:
        self.rows_NF = torch.zeros(count, features, dtype=torch.float32, device=device)

    def put(self, start: int, rows_BF: Tensor) -> None:
        """Fill the rows from `start` on."""
        self.rows_NF[start : start + len(rows_BF)] = rows_BF

    def tensors(self) -> tuple[Tensor]:
        """What is summed over ranks, in place."""
        return (self.rows_NF,)
