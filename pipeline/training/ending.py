"""How runs end."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.ranks import Ranks
from pipeline.training import checkpoints


class Ending(NamedTuple):
    """How a run ended."""

    kind: Literal["finished", "diverged", "failed", "mistake"]
    why: str


def unwritten(directory: Path, ranks: Ranks, write: Callable[[], None]) -> Ending | None:
    """Let rank 0 write; where its disk refuses, every rank ends."""
    trouble = ""
    if ranks.first:
        try:
            write()
        except OSError as error:
            trouble = f"could not write to {directory}: {error.strerror or error}"
    if ranks.any(bool(trouble)):
        return Ending("failed", f"{trouble or 'rank 0 could not write'}; mend it and run the same command again")
    return None


def diverged(directory: Path, ranks: Ranks, images_seen: int, what: str) -> Ending:
    """Something is not finite. Rank 0 looks for the last good checkpoint, and tells the others."""
    why = ""
    if ranks.first:
        last, _ = checkpoints.newest_whole(directory)
        where = f"the last good checkpoint is {last}" if last else "there is no checkpoint before it"
        why = f"{what} is not finite in the step that ends at {images_seen} images; {where}"
    return Ending("diverged", ranks.first_tells(why))
