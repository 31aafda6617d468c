"""What a run's folder tells of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.evaluation.curves import Points, points_of
from pipeline.rundir import Event, Record, read_journal
from pipeline.settings import Settings, parse
from pipeline.training import checkpoints
from pipeline.training.checkpoints import Checkpoint


class Story(NamedTuple):
    """A run, or a trial of a search."""

    directory: Path
    record: Record
    settings: Settings
    events: list[Event]
    kept: list[Checkpoint]
    """Oldest first."""

    @property
    def ending(self) -> tuple[str, str]:
        """Its status, and why; RUNNING where nothing says that it ended."""
        last = next((event.body for event in reversed(self.of_kind("status"))), {})
        return str(last.get("text", "RUNNING")), str(last.get("why", ""))

    @property
    def evaluated(self) -> list[Checkpoint]:
        """The kept checkpoints that have figures, best first."""
        evaluated = [checkpoint for checkpoint in self.kept if checkpoint.figures]
        return checkpoints.ranked(evaluated, self.settings.checkpoints.metric)

    @property
    def points(self) -> Mapping[str, Points]:
        """The curves."""
        return points_of(self.events)

    @property
    def pictures(self) -> Mapping[str, Mapping[int, Path]]:
        """Name of a picture -> images seen -> where it is."""
        found: dict[str, dict[int, Path]] = {}
        for event in self.of_kind("picture"):
            path = self.directory / str(event.body["path"])
            if path.exists():
                found.setdefault(str(event.body["key"]), {})[event.step] = path
        return found

    @property
    def images_seen(self) -> int:
        """As far as the journal goes."""
        return max((event.step for event in self.events), default=0)

    def of_kind(self, *kinds: str) -> list[Event]:
        """Events of these kinds."""
        return [event for event in self.events if event.kind in kinds]


def read(directory: Path, record: Record) -> Story:
    """All of it."""
    return Story(
        directory,
        record,
        parse(record["settings"]),
        [event for event, _ in read_journal(directory, 0)],
        checkpoints.listed(directory),
    )
