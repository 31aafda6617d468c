"""From any source to a data set of our own: Parquet shards of images of one size, and a manifest.

The same source and options give the same bytes, whatever number of processes wrote them. N rows, C channels.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from pipeline.data.manifest import IMAGE, MANIFEST, Manifest, Shard
from pipeline.data.pixels import packed
from pipeline.data.sources import Picture, Source
from pipeline.errors import Mistake
from pipeline.progress import pause_s

T = TypeVar("T")
SHARD_ROWS = 4096
SMALLEST = 8
"""Pixels of the shortest side that is worth a network."""
PEAKS = {"F": 1.0, "I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0}
"""What is white where a pixel is not a byte."""
GREY = frozenset({"1", "L", "LA", *PEAKS})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all shards of a data set have in common."""

    source: Source
    folder: Path
    mode: str
    """Pillow's: L or RGB."""
    size: int
    """Pixels of a side."""
    skip_bad: bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard: rows [start, stop) of a split."""

    split: str
    number: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of a job. shard: None where not one of its images could be read."""

    job: Job
    shard: Shard | None
    skipped: int


def prepare(
    source: Source,
    described: str,
    out: Path,
    *,
    size: int,
    workers: int = 0,
    skip_bad: bool = False,
    progress: bool = True,
) -> Manifest:
    """Write `source` as a data set into `out`, which appears whole or not at all.

    described: the source as the command had it. size: pixels of a side. workers: Ray tasks at a time; this process does
    it all with 0 or 1. skip_bad: leave unreadable images out and count them. Raises Mistake.
    """
    out = out.absolute()
    if size < SMALLEST:
        raise Mistake(f"--size is {size}; expected a whole number of pixels >= {SMALLEST}")
    if os.path.lexists(out):
        raise Mistake(f"--out is {str(out)!r}: it exists; remove it or choose another folder")
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    recipe = Recipe(source=source, folder=folder, mode=_mode(source, skip_bad), size=size, skip_bad=skip_bad)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise Mistake(f"--out is {str(out)!r}: {error.strerror}; choose a folder that you may write to") from None
    try:
        manifest = _manifest(recipe, described, _written(recipe, workers, progress))
        (folder / MANIFEST).write_text(manifest.to_json())
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


def write_shard(recipe: Recipe, job: Job) -> Written:
    """Make one shard in the folder of the recipe. Raises Mistake for an unreadable image, unless such are skipped."""
    images_NCHW, kept = _readable(recipe, job)
    skipped = job.stop - job.start - len(images_NCHW)
    if not len(images_NCHW):
        return Written(job=job, shard=None, skipped=skipped)
    field, pixels = packed(images_NCHW, IMAGE)
    table = pa.table([pixels, *kept.columns], schema=pa.schema([field, *kept.schema]))
    path = recipe.folder / f"{job.split}-{job.number:05d}.parquet"
    pq.write_table(table, path, compression="zstd", use_dictionary=kept.column_names)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Written(job=job, shard=Shard(path=path.name, rows=len(images_NCHW), sha256=digest), skipped=skipped)


def fitted(image: Image.Image, mode: str, size: int) -> npt.NDArray[np.uint8]:
    """Pixels (C, size, size): the short side resized to `size` with antialiasing, the middle kept.

    Raises ValueError for pixels that are not bytes and not within black and white.
    """
    peak = PEAKS.get(image.mode)
    if peak is not None:
        shares = np.asarray(image) / peak
        if not (shares.min() >= 0 and shares.max() <= 1):
            raise ValueError(f"its pixels of mode {image.mode} are not all in [0, {peak:g}]")
        image = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    # Pillow resizes palettes and bits by the nearest pixel, so the mode comes first
    pixels = np.asarray(ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR))
    return np.moveaxis(pixels.reshape(size, size, -1), -1, 0)


def _readable(recipe: Recipe, job: Job) -> tuple[npt.NDArray[np.uint8], pa.Table]:
    """The images of a job that could be read, and the columns beside them."""
    fit = partial(fitted, mode=recipe.mode, size=recipe.size)
    images_NCHW = np.empty((job.stop - job.start, _channels(recipe.mode), recipe.size, recipe.size), np.uint8)
    tables, rows = [], 0
    for piece in recipe.source.rows(job.split, job.start, job.stop):
        readable = []
        for index, picture in enumerate(piece.pictures):
            pixels_CHW = _attempt(picture, recipe.skip_bad, fit)
            if pixels_CHW is not None:
                images_NCHW[rows] = pixels_CHW
                readable.append(index)
                rows += 1
        tables.append(piece.columns.take(pa.array(readable, pa.int64())))
    return images_NCHW[:rows], pa.concat_tables(tables).combine_chunks()


def _attempt(picture: Picture, skip_bad: bool, make: Callable[[Image.Image], T]) -> T | None:
    """What `make` makes of a picture; None for one that cannot be read, where such are left out."""
    try:
        return make(picture.load())
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, IndexError
        if skip_bad:
            return None
        reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise Mistake(
            f"{picture.where} cannot be read as an image ({reason}); --skip-bad leaves such images out"
        ) from None


def _mode(source: Source, skip_bad: bool) -> str:
    """L or RGB, as the first image of the source has it."""
    for job in _jobs(source):
        for piece in source.rows(job.split, job.start, job.stop):
            for picture in piece.pictures:
                if mode := _attempt(picture, skip_bad, lambda image: image.mode):
                    return "L" if mode in GREY else "RGB"
    raise Mistake("the source has not one image that can be read; choose another")


def _jobs(source: Source) -> list[Job]:
    return [
        Job(split=split, number=number, start=start, stop=min(start + SHARD_ROWS, rows))
        for split, rows in source.splits().items()
        for number, start in enumerate(range(0, rows, SHARD_ROWS))
    ]


def _manifest(recipe: Recipe, described: str, written: list[Written]) -> Manifest:
    splits: dict[str, tuple[Shard, ...]] = dict.fromkeys(recipe.source.splits(), ())
    for result in sorted(written, key=lambda result: result.job.number):
        if result.shard:
            splits[result.job.split] += (result.shard,)
    for split, shards in splits.items():
        if not shards:
            raise Mistake(f"split {split!r} has no image that can be read; a data set needs one in each of its splits")
    return Manifest(
        source=described,
        shape=(_channels(recipe.mode), recipe.size, recipe.size),
        columns={field.name: str(field.type) for field in recipe.source.columns},
        class_names=recipe.source.class_names,
        skipped=sum(result.skipped for result in written),
        splits=splits,
    )


def _channels(mode: str) -> int:
    return Image.getmodebands(mode)


def _written(recipe: Recipe, workers: int, progress: bool) -> list[Written]:
    jobs, written = _jobs(recipe.source), []
    results = _in_ray(recipe, jobs, workers) if workers > 1 else (write_shard(recipe, job) for job in jobs)
    total = sum(job.stop - job.start for job in jobs)
    with tqdm(total=total, unit=" rows", unit_scale=True, disable=not progress, mininterval=pause_s()) as bar:
        for result in results:
            written.append(result)
            bar.update(result.job.stop - result.job.start)
    return written


def _in_ray(recipe: Recipe, jobs: list[Job], workers: int) -> Iterator[Written]:
    """The shards as Ray Data finishes them, on the cluster there is or one of this machine's own."""
    import ray
    import ray.data

    from pipeline.cluster import cluster

    with cluster():
        cores = int(ray.cluster_resources().get("CPU", 0))
        if workers > cores:
            raise Mistake(f"--workers is {workers}; the cluster has {cores} CPUs: ask for {cores} at most")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = ray.data.from_items([{"job": job} for job in jobs], override_num_blocks=len(jobs))
        rows.context.enable_progress_bars = False
        tasks = ray.data.TaskPoolStrategy(size=workers)
        for row in rows.map(_outcome, fn_args=(recipe,), compute=tasks, num_cpus=1).iter_rows():
            if isinstance(row["outcome"], Mistake):
                raise row["outcome"]
            yield row["outcome"]


def _outcome(row: dict[str, Job], recipe: Recipe) -> dict[str, Written | Mistake]:
    """A Mistake is returned: raised, it would reach the driver as a traceback of Ray's."""
    try:
        return {"outcome": write_shard(recipe, row["job"])}
    except Mistake as mistake:
        return {"outcome": mistake}
    except OSError as error:
        return {
            "outcome": Mistake(f"{recipe.folder.parent}: {error.strerror or error}; every host must see this folder")
        }
