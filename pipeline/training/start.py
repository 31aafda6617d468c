"""Where the seconds between a command and its first step go."""

import time
from collections.abc import Mapping


class Start:
    """A start as consecutive stretches, each under its cause, through every process that takes part.

    The stretches add up to the whole. Clocks of different hosts are taken to agree.
    """

    def __init__(self, since: float, seconds: Mapping[str, float] | None = None) -> None:
        """since: when the stretch under way began, seconds of the epoch. seconds: cause -> length of those before."""
        self.since = since
        self.seconds = dict(seconds or {})
        self._told = False

    def lap(self, cause: str) -> None:
        """The stretch under way was for `cause` and ends here; a cause that has had its stretch keeps it."""
        if cause not in self.seconds:
            now = time.time()
            self.seconds[cause] = now - self.since
            self.since = now

    def points(self) -> dict[str, float]:
        """`startup/<cause>` -> seconds; the first time, and nothing from then on."""
        told, self._told = self._told, True
        return {} if told else {f"startup/{cause}": seconds for cause, seconds in self.seconds.items()}
