"""What was seen of a model while it was measured: rows in the order of the images. N images, F features, B batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vaegan.metrics.latents import Latents
from vaegan.metrics.rows import Rows


@dataclass(frozen=True)
class Seen:
    """Each rank fills rows of its own, so merging is adding."""

    rows: Mapping[str, Rows]
    """`images/<extractor>`, `samples/<extractor>`, `reconstructions/<extractor>`: features. `means`: codes. Else what
    there is one number of for each image, by the name of its figure."""
    latents: Latents | None = None
    """Of a model that has posteriors."""

    def put(self, name: str, start: int, rows: Tensor) -> None:
        """Rows from `start` on, (B, F), or numbers, (B,)."""
        self.rows[name].put(start, rows.reshape(len(rows), -1))

    def tensors(self) -> tuple[Tensor, ...]:
        """What is summed over ranks, in place."""
        every: list[Rows | Latents] = [*self.rows.values(), *([self.latents] if self.latents else [])]
        return tuple(tensor for one in every for tensor in one.tensors())

    def add(self, others: Sequence[Tensor]) -> None:
        """Take in another rank's `tensors`."""
        for own, other in zip(self.tensors(), others, strict=True):
            own += other

    def __getitem__(self, name: str) -> Tensor:
        """(N, F)."""
        return self.rows[name].rows_NF
