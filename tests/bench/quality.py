"""What the models are worth, in one harness: ours beside a VAE, a GAN, Larsen's VAE-GAN and pythae's.

    make bench-quality DATA=data/fashion-mnist
    .venv/bin/python -m tests.bench.quality DATA [--preset rgb-32] [--images N] [--out FOLDER]

Every contestant has the networks and the batch of the preset, sees equally many images, and is measured by the
product's own evaluation, against the test split. Samples are drawn from the prior, and once more from
a mixture of 10 Gaussians fitted to the codes of training images (Ghosh et al. 2020), which any autoencoder can have.
`ours` is the preset; VAE, beta-VAE and GAN are the same without the others' turns; `plain VAE-GAN` and `larsen` are the
presets `plain-conv` and `larsen` on these networks. pythae has its own trainer and defaults, and beside these Larsen's
rate and layer. Ours has three seeds, the others one.

What a contestant came to is kept in FOLDER with a grid of its images, and not computed again.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from pipeline.data import manifest as manifests
from pipeline.data.batches import first_images
from pipeline.evaluation import pictures
from pipeline.evaluation.figures import open_evaluator
from pipeline.evaluation.observer import Codes
from pipeline.settings import Settings, Tree, merge, read_tree
from tests.bench.common import machine, spread, table
from tests.bench.mixture import mixture
from tests.bench.peers import pythae_epoch
from tests.bench.trainee import EVERY, arguments, fresh_model, pool, settings_of, trained
from vaegan import Autoencoder

DISTANCE, OF_MIXTURE = "eval/fd_classifier/samples", "mixture"
COLUMNS = {
    "prior: fd_classifier": DISTANCE,
    "fd_pca64": "eval/fd_pca64/samples",
    "precision": "eval/precision_classifier/samples",
    "recall": "eval/recall_classifier/samples",
    "mixture: fd_classifier": OF_MIXTURE,
    "reconstructions: fd_classifier": "eval/fd_classifier/reconstructions",
    "psnr, dB": "eval/psnr/reconstructions",
}

Figures = Mapping[str, float]


class Pythae(NamedTuple):
    """How its trainer is asked to train."""

    lr: float
    layer: int
    """Of D, whose features are reconstructed; -1: the last."""
    margin: float
    """Of the gate."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Somebody's recipe."""

    name: str
    recipe: str | None = None
    """A preset whose objective and optimisers take the place of ours."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """To the recipe."""
    moves: tuple[str, ...] = EVERY
    """Turns that are taken."""
    pythae: Pythae | None = None
    """It trains, not we."""
    seeds: tuple[int, ...] = (0,)


APART: Tree = {"schedule": "plain", "lambda": 1.0}
"""D's and the generator's turns apart from the autoencoder's."""

CONTESTANTS = (
    Contestant(name="ours", seeds=(0, 1, 2)),
    Contestant(name="VAE", moves=("autoencoder",), changes={"objective": APART}),
    Contestant(name="beta-VAE, beta 4", moves=("autoencoder",), changes={"objective": APART | {"beta": 4.0}}),
    Contestant(name="GAN", moves=("discriminator", "generator"), changes={"objective": APART}),
    Contestant(name="plain VAE-GAN", recipe="plain-conv"),
    Contestant(name="larsen", recipe="larsen"),
    Contestant(name="pythae", pythae=Pythae(1e-4, -1, 0.4)),
    Contestant(name="pythae, Larsen's rate and layer", pythae=Pythae(3e-4, 2, 0.35)),
)


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(__doc__, images=240_000, out="runs/quality").parse_args(argv)
    print(machine(), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    jobs = [(one, seed) for one in CONTESTANTS for seed in one.seeds if given.only in one.name]
    found: dict[str, list[Figures]] = {one.name: [] for one, _ in jobs}
    jobs.sort(key=lambda job: job[0].pythae is None)  # the slowest first
    with pool(given.jobs) as workers:
        running = [
            workers.submit(result, one, settings_of(recipe_of(one, given.preset), given, seed), given.out)
            for one, seed in jobs
        ]
        for done in as_completed(running):
            one, figures = done.result()
            print(f"{one}: {DISTANCE} {figures[DISTANCE]:.2f}", flush=True)
            found[one].append(figures)
    title = f"{given.data}, {given.images:,} images seen, networks of {given.preset}: median (range) over seeds"
    table(title, ["", *COLUMNS], rows_of(found))


def result(one: Contestant, settings: Settings, out: Path) -> tuple[str, Figures]:
    """What a contestant comes to with a seed: computed once, then read."""
    figures = out / f"{one.name.replace(' ', '-')}-{settings.seed}.json"
    weights = figures.with_suffix(".safetensors")
    if not weights.exists():
        autoencoder = _by_pythae(one.pythae, settings) if one.pythae else trained(settings, one.moves)
        save_file(autoencoder.state_dict(), weights)
    if not figures.exists():
        autoencoder = fresh_model(settings).autoencoder.eval()
        autoencoder.load_state_dict(load_file(weights))
        encodes = "autoencoder" in one.moves
        pictures.save(pictures.grid(_shown(autoencoder, settings, encodes), 16), figures.with_suffix(".png"))
        found = measured(autoencoder, settings, encodes=encodes)
        figures.write_text(json.dumps(found, indent=2) + "\n")
    return one.name, json.loads(figures.read_text())


def measured(autoencoder: Autoencoder, settings: Settings, *, encodes: bool = True) -> Figures:
    """Figures of samples from the prior and of reconstructions, that of the mixture, and floors as `floor <name>`."""
    evaluator = open_evaluator(settings.data.path, manifests.load(settings.data.path), settings.evaluation)
    found = evaluator.evaluate(autoencoder, evaluator.prior(settings.networks.latent))
    figures = {name: value for name, value in found.figures.items() if encodes or name.endswith("/samples")}
    floors = {f"floor {name}": how["floor"] for name, how in found.protocols.items() if how.get("floor") is not None}
    if encodes:
        codes_MZ = mixture(autoencoder, evaluator.held_out.training, settings.evaluation.samples, seed=0)
        figures[OF_MIXTURE] = evaluator.evaluate(autoencoder, Codes(OF_MIXTURE, codes_MZ)).figures[DISTANCE]
    return figures | {name: float(str(floor)) for name, floor in floors.items()}


def recipe_of(one: Contestant, preset: str) -> Tree:
    """The preset, with the objective and the optimisers of a contestant's recipe."""
    theirs = merge(read_tree(one.recipe or preset), one.changes)
    return read_tree(preset) | {part: theirs.get(part, {}) for part in ("objective", "optimizers")}


def _by_pythae(how: Pythae, settings: Settings) -> Autoencoder:
    manifest = manifests.load(settings.data.path)
    images = first_images(settings.data.path, manifest, "train", manifest.rows("train")).float() / 255
    model = fresh_model(settings)
    epoch = pythae_epoch(model, images, settings.data.batch, how.layer, how.lr, how.margin)
    whole, rest = divmod(settings.stop.images, len(images))
    assert whole and not rest, f"pythae trains for whole epochs: --images must be a multiple of {len(images)}"
    for _ in range(whole):
        epoch()
    return model.autoencoder.eval()


def _shown(autoencoder: Autoencoder, settings: Settings, encodes: bool) -> torch.Tensor:
    """Samples, then held-out images above their reconstructions, in rows of 16."""
    samples = pictures.samples(autoencoder, 96, 0)
    if not encodes:
        return samples
    originals = first_images(settings.data.path, manifests.load(settings.data.path), "test", 32).float() / 255
    return torch.cat([samples, pictures.reconstructions(autoencoder, originals, 16)])


def rows_of(found: Mapping[str, Sequence[Figures]]) -> list[list[str]]:
    """The real floor, then every contestant's figures over its seeds."""
    rows = [["real images, as many of the training split", *_floor(next(iter(found.values()))[0])]]
    return rows + [[name, *_cells(results)] for name, results in found.items()]


def _cells(results: Sequence[Figures]) -> list[str]:
    return [_cell([found[name] for found in results if name in found]) for name in COLUMNS.values()]


def _cell(values: Sequence[float]) -> str:
    return "" if not values else spread(values, ".2f") if len(values) > 1 else f"{values[0]:.2f}"


def _floor(figures: Figures) -> list[str]:
    floors = [figures.get(f"floor {name}") for name in COLUMNS.values()]
    return ["" if floor is None else f"{floor:.2f}" for floor in floors]


if __name__ == "__main__":
    main()
