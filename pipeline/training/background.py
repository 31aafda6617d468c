"""Work that goes on beside training, one job at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Background:
    """A thread for what must not hold up a step. What a job raises comes out when it is settled."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "background")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin; the one before must have been settled."""
        assert self._job is None
        self._job = self._thread.submit(job)

    @property
    def busy(self) -> bool:
        """Whether a job is still running."""
        return self._job is not None and not self._job.done()

    def done_within(self, seconds: float) -> bool:
        """Wait for the job, but not for ever; whether it is done."""
        return self._job is None or not wait([self._job], seconds).not_done

    def settle(self) -> None:
        """Wait for the job, if there is one. Raises what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
