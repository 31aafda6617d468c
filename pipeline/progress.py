"""What a person sees while a run goes on: one line, read off its journal."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Never

from tqdm import tqdm

from pipeline.rundir import JOURNAL, Event, read_journal
from pipeline.settings import Settings, better

TRIALS = "{desc}: {n_fmt} of {total_fmt} trials ended [{elapsed}{postfix}]"

SHORT = {
    "train/autoencoder/reconstruction": "rec",
    "train/autoencoder/kl": "kl",
    "train/autoencoder/adversarial": "adv",
    "train/generator/adversarial": "adv",
    "train/discriminator/real": "d_real",
    "train/discriminator/samples": "d_fake",
    "eval/fd_pca64/samples": "fd_pca64",
    "eval/fd_classifier/samples": "fd_classifier",
    "eval/fid/samples": "fid",
}


@contextmanager
def progress_line(directory: Path, name: str, images: int) -> Iterator[None]:
    """A line that follows a run's journal, on a terminal rewritten in place, elsewhere a line every ten seconds."""
    journal = directory / JOURNAL
    offset = journal.stat().st_size if journal.exists() else 0
    bar = tqdm(
        total=images, desc=f"{name} starts", unit="img", unit_scale=True, mininterval=pause_s(), dynamic_ncols=True
    )
    with _followed(bar, partial(_follow, directory, offset, _Line(bar, name, images))):
        yield


@contextmanager
def _followed(bar: "tqdm[Never]", follow: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `follow` beside whatever happens here; it looks once more when told that it is done."""
    done = threading.Event()
    thread = threading.Thread(target=follow, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5)
        bar.close()


def pause_s() -> float:
    """Between two looks of a line: a terminal is rewritten, a log grows."""
    return 0.5 if sys.stderr.isatty() else 10.0


class _Line:
    def __init__(self, bar: "tqdm[Never]", name: str, images: int) -> None:
        self._bar = bar
        self._name = name
        self._images = images
        self._trains = False
        self._shown: dict[str, str] = {}

    def show(self, event: Event) -> None:
        if event.kind in {"note", "warning"}:
            if self._bar.n == 0:
                self._bar.initial = event.step  # a resumed run's rate and ETA are those of what it still has to do
                self._bar.n = event.step
            self._bar.write(f"{event.kind}: {event.body['text']}", file=sys.stderr)
        elif event.kind == "metrics":
            self._shown |= {SHORT[key]: f"{value:.4g}" for key, value in event.body.items() if key in SHORT}
            self._bar.set_postfix(self._shown, refresh=False)
            seen = min(event.step, self._images)  # a batch may go beyond
            if not self._trains:
                self._begin(seen)
            self._bar.update(max(0, seen - self._bar.n))  # a figure comes later than its checkpoint

    def _begin(self, seen: int) -> None:
        """Rate and time left are those of training, not of what went before it."""
        self._trains = True
        self._bar.set_description(self._name, refresh=False)
        self._bar.unpause()
        self._bar.initial = self._bar.n = seen
        self._bar.refresh()


def _follow(directory: Path, offset: int, line: _Line, done: threading.Event) -> None:
    while True:
        last_look = done.wait(0.5)
        for event, after in read_journal(directory, offset):
            line.show(event)
            offset = after
        if last_look:
            return


@contextmanager
def search_line(directory: Path, settings: Settings, trials: int) -> Iterator[None]:
    """A line that follows the journals of a search's trials, with a line more for each trial that starts or ends."""
    bar = tqdm(total=trials, desc=settings.name, bar_format=TRIALS, dynamic_ncols=True)
    with _followed(bar, _Trials(bar, directory, settings).follow):
        yield


class _Trials:
    def __init__(self, bar: "tqdm[Never]", directory: Path, settings: Settings) -> None:
        self._bar = bar
        self._directory = directory
        self._settings = settings
        self._offsets: dict[Path, int] = {}
        self._best: dict[Path, float] = {}
        self._running: dict[Path, str] = {}
        self._ended: set[Path] = set()

    def follow(self, done: threading.Event) -> None:
        last_look, shown_at = False, 0.0
        while not last_look:
            last_look = done.wait(0.5)
            for trial in sorted(self._directory.glob("trial-*")):
                for event, after in read_journal(trial, self._offsets.get(trial, 0)):
                    self._offsets[trial] = after
                    self._take(trial, event)
            self._bar.set_postfix_str(", ".join(self._running.values()), refresh=False)
            if time.monotonic() - shown_at >= pause_s():
                self._bar.refresh()
                shown_at = time.monotonic()

    def _take(self, trial: Path, event: Event) -> None:
        metric = self._settings.checkpoints.metric
        match event.kind, event.body:
            case "metrics", {"speed/images_per_s": float(speed)}:
                percent = 100 * event.step / self._settings.stop.images
                self._running[trial] = f"{trial.name} {percent:.0f}% {speed:.0f} img/s"
            case "metrics", body if metric in body:
                best_of = min if better(metric) == "min" else max
                figure = float(str(body[metric]))
                self._best[trial] = best_of(figure, self._best.get(trial, figure))
            case "warning", {"text": str(text)}:
                self._bar.write(f"{trial.name}: {text}", file=sys.stderr)
            case "status", {"text": "RUNNING"}:
                self._running[trial] = f"{trial.name} starts"
                self._ended.discard(trial)
            case "status", {"text": str(status)}:
                self._running.pop(trial, None)
                came_to = f"{metric} {self._best[trial]:.4g}" if trial in self._best else "no checkpoint"
                seen = f"{event.step:,} of {self._settings.stop.images:,} images"
                text = f"{trial.name}: {status.lower()} at {seen}, {came_to}"
                self._bar.write(text, file=sys.stderr)
                self._ended.add(trial)
                self._bar.update(len(self._ended) - self._bar.n)
