"""A small classifier of the user's own labelled data, whose features figures are measured on.

It is trained once for a data set and kept beside its shards: `classifier.safetensors`, and `classifier.json` that says
which data it has seen and how well it does. B batch, C channels, S side, F features, K columns that are classified.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import log2

import torch
from pyarrow import fs
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from pipeline.data.batches import first_columns, first_images
from pipeline.data.manifest import LABEL, Manifest, location
from pipeline.errors import Mistake
from pipeline.progress import pause_s

FEATURES = 128
STEM = 32
IMAGES_SEEN = 180_000
"""In training, all epochs together, however many images there are."""
BATCH = 128
LR = 4e-3
SEED = 0
MOST_BYTES = 2**31
"""Of pixels held in training: of a larger split the first so many are learnt."""
WEIGHTS, CARD = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True, kw_only=True)
class Card:
    """`classifier.json`."""

    digest: str
    """Of the data it was trained on."""
    sha256: str
    """Of its weights."""
    columns: tuple[str, ...]
    classes: tuple[int, ...]
    """Of each column."""
    accuracy: tuple[float, ...]
    """Of each column, on the split that it is scored on."""
    images_seen: int = IMAGES_SEEN
    seed: int = SEED


class Classifier(nn.Module):
    """Stride-2 stages down to 4 px or so, their mean over the pixels as features, one linear head a column."""

    def __init__(self, channels: int, side: int, classes: Sequence[int]) -> None:
        super().__init__()
        depth = max(1, round(log2(side / 4)))
        widths = [channels, *(min(FEATURES, STEM * 2**stage) for stage in range(depth - 1)), FEATURES]
        self.stages = nn.Sequential(*(layer for a, b in pairwise(widths) for layer in _stage(a, b)))
        self.heads = nn.ModuleList(nn.Linear(FEATURES, count) for count in classes)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        """Features of images in [0, 1], (B, F)."""
        features_BF: Tensor = self.stages(2 * images_BCSS - 1).mean((2, 3))
        return features_BF

    def classes(self, features_BF: Tensor) -> Tensor:
        """The likeliest class in each column, (B, K)."""
        return torch.stack([head(features_BF).argmax(1) for head in self.heads], 1)


def _stage(a: int, b: int) -> Iterator[nn.Module]:
    for stride, before in ((2, a), (1, b)):
        yield nn.Conv2d(before, b, 3, stride=stride, padding=1, bias=False)
        yield nn.BatchNorm2d(b)
        yield nn.ReLU()


def trained(data: str, manifest: Manifest, columns: Sequence[str], progress: bool = True) -> Card:
    """The classifier of a data set: the one that is there, or one trained now and kept. Raises Mistake."""
    columns = tuple(columns) or (LABEL,)
    card = _card(data)
    if card is not None and card.digest == manifest.digest:
        if card.columns != columns:
            raise Mistake(
                f"{data}/{CARD} classifies {', '.join(card.columns)}, not {', '.join(columns)}; figures rest on it: "
                "remove it to train another"
            )
        return card
    network, classes = _fit(data, manifest, columns, progress)
    weights = save({name: value.contiguous() for name, value in network.state_dict().items()})
    card = Card(
        digest=manifest.digest,
        sha256=hashlib.sha256(weights).hexdigest(),
        columns=columns,
        classes=classes,
        accuracy=_accuracy(network, data, manifest, columns),
    )
    _write(data, WEIGHTS, weights)
    _write(data, CARD, (json.dumps(asdict(card), indent=2) + "\n").encode())
    return card


def kept(data: str, manifest: Manifest) -> tuple[Classifier, Card]:
    """The classifier that was trained on a data set, and its card. Raises Mistake where there is none."""
    command = f"`vaegan features train --data {data}`"
    card = _card(data)
    if card is None:
        _require_whole(data, manifest, (LABEL,))
        raise Mistake(f"{data} has no classifier yet: train it with {command}")
    if card.digest != manifest.digest:
        raise Mistake(f"{data}/{CARD} was trained on other data ({card.digest[:12]}): train it again with {command}")
    weights = _read(data, WEIGHTS)
    if weights is None or hashlib.sha256(weights).hexdigest() != card.sha256:
        raise Mistake(f"{data}/{WEIGHTS} is missing or damaged: remove {CARD} and train it again with {command}")
    network = Classifier(manifest.shape[0], manifest.shape[-1], card.classes)
    network.load_state_dict(load(weights))
    return network.eval().requires_grad_(False), card


def _fit(data: str, manifest: Manifest, columns: tuple[str, ...], progress: bool) -> tuple[Classifier, tuple[int, ...]]:
    images, labels_NK = _labelled(data, manifest, "train", columns)
    for column, least in zip(columns, labels_NK.amin(0), strict=True):
        if least < 0:
            raise Mistake(f"{data}: column {column!r} holds {int(least)}; classes are counted from 0")
    classes = tuple(int(most) + 1 for most in labels_NK.amax(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = Classifier(manifest.shape[0], manifest.shape[-1], classes)
    steps = IMAGES_SEEN // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    with tqdm(
        total=steps * BATCH,
        unit="img",
        unit_scale=True,
        disable=not progress,
        mininterval=pause_s(),
        dynamic_ncols=True,
    ) as bar:
        for ids in _batches(len(images), steps):
            features_BF = network(images[ids].float() / 255)
            targets = labels_NK[ids].unbind(1)
            losses = [
                cross_entropy(head(features_BF), target, label_smoothing=0.05)
                for head, target in zip(network.heads, targets, strict=True)
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(BATCH)
    return network.eval(), classes


def _batches(count: int, steps: int) -> Iterator[Tensor]:
    """Rows of each step: one permutation after another."""
    generator = torch.Generator().manual_seed(SEED)
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < BATCH:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:BATCH]
        waiting = waiting[BATCH:]


def scored_on(manifest: Manifest) -> str:
    """The split that a classifier's accuracy is of: one it has not seen, where there is one."""
    return next((split for split in ("test", "val") if split in manifest.splits), "train")


@torch.no_grad()
def _accuracy(network: Classifier, data: str, manifest: Manifest, columns: tuple[str, ...]) -> tuple[float, ...]:
    images, labels_NK = _labelled(data, manifest, scored_on(manifest), columns)
    right_K = torch.zeros(len(columns))
    for some, labels in zip(images.split(BATCH), labels_NK.split(BATCH), strict=True):
        right_K += (network.classes(network(some.float() / 255)) == labels).sum(0)
    return tuple((right_K / len(images)).tolist())


def _labelled(data: str, manifest: Manifest, split: str, columns: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(N, C, S, S) uint8 and (N, K) int64."""
    _require_whole(data, manifest, columns)
    channels, height, width = manifest.shape
    most = MOST_BYTES // (channels * height * width)
    return first_images(data, manifest, split, most), first_columns(data, manifest, split, columns, most)


def _require_whole(data: str, manifest: Manifest, columns: tuple[str, ...]) -> None:
    able = manifest.whole
    for column in columns:
        if column not in able:
            remedy = f"name another with --column: {', '.join(able)}" if able else "only labelled data have one"
            raise Mistake(f"{data} has no labels: there is no column {column!r} of whole numbers; {remedy}")


def _card(data: str) -> Card | None:
    text = _read(data, CARD)
    if text is None:
        return None
    try:
        read = json.loads(text)
        lists = {key: tuple(read[key]) for key in ("columns", "classes", "accuracy")}
        return Card(**(read | lists))
    except (KeyError, TypeError, ValueError):
        raise Mistake(f"{data}/{CARD} is damaged; remove it and train the classifier again") from None


def _read(data: str, name: str) -> bytes | None:
    filesystem, folder = location(data)
    if filesystem.get_file_info(f"{folder}/{name}").type == fs.FileType.NotFound:
        return None
    with filesystem.open_input_stream(f"{folder}/{name}") as stream:
        return stream.read()


def _write(data: str, name: str, content: bytes) -> None:
    filesystem, folder = location(data)
    try:
        with filesystem.open_output_stream(f"{folder}/{name}") as stream:
            stream.write(content)
    except OSError as error:
        raise Mistake(f"{data}/{name}: {error}; the classifier is kept beside the data") from None
