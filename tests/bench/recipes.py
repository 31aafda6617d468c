"""Which parts of a recipe pay: the preset with one thing changed at a time, on one data set, in one harness.

    .venv/bin/python -m tests.bench.recipes DATA [--images 48000] [--seeds 3] [--only NAME] [--out FOLDER]

What a variant came to is kept in FOLDER, and not computed again. What did not pay lives here alone: the product offers
what did. `recipes.md` tells what came of it. B batch, K kinds of generated images.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu, softplus

from pipeline.settings import merge, read_tree
from tests.bench.common import machine, spread, table
from tests.bench.quality import measured
from tests.bench.trainee import arguments, pool, settings_of, trained
from vaegan import VAEGAN
from vaegan.model import Critic, Passed
from vaegan.objective import STEP, kl_of_units, squared_slopes
from vaegan.step import Batch, Made, Noise, Players, Terms, Turn

Make = Callable[[], Made]
TermsOf = Callable[[Players, Batch, Noise, Make], Terms]
Change = Callable[[TermsOf], TermsOf]
COLUMNS = {
    "fd_classifier": "eval/fd_classifier/samples",
    "of reconstructions": "eval/fd_classifier/reconstructions",
    "fd_pca64": "eval/fd_pca64/samples",
    "psnr, dB": "eval/psnr/reconstructions",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The preset, but for one thing."""

    name: str
    source: str
    settings: Mapping[str, object] = field(default_factory=dict)
    """Of the objective, changed."""
    discriminator: Change = lambda terms: terms
    autoencoder: Change = lambda terms: terms
    """What becomes of the terms of a turn; a class, where it remembers earlier steps: each run has its own."""
    prepared: Callable[[VAEGAN], None] = lambda model: None
    """What becomes of the model before its first image."""

    def turns(self, before: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """The preset's, changed."""
        by_name = {"discriminator": self.discriminator, "autoencoder": self.autoencoder}
        return tuple(replace(turn, terms=by_name.get(turn.name, lambda terms: terms)(turn.terms)) for turn in before)


def _logits(players: Players, images: Tensor) -> Tensor:
    critic = players["discriminator"].network
    assert isinstance(critic, Critic)
    return critic(images).logits_B


def _judged(players: Players, batch: Batch, made: Make) -> tuple[Tensor, ...]:
    """D's logits of real images, and of each kind of generated ones, (B,) each; D learns from them."""
    seen = torch.cat([batch.images, made().shown.detach()])
    logits: Tensor = players["discriminator"].learner(seen).logits_B
    return logits.split(len(batch.images))


def pairs_of_d(terms: TermsOf) -> TermsOf:
    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = terms(players, batch, noise, made)
        real_B, *fakes = _judged(players, batch, made)
        pairs = torch.stack([softplus(fake_B - real_B) for fake_B in fakes]).sum(0)
        return {"pairs": pairs, "penalty": found["penalty"]}

    return changed


def pairs_of_g(terms: TermsOf) -> TermsOf:
    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = terms(players, batch, noise, made)
        scores_KB = _logits(players, made().shown).unflatten(0, (-1, len(batch.images)))
        with torch.no_grad():
            real_B = _logits(players, batch.images)
        return found | {"adversarial": softplus(real_B - scores_KB).sum(0)}

    return changed


def hinge_of_d(terms: TermsOf) -> TermsOf:
    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = terms(players, batch, noise, made)
        real_B, *fakes = _judged(players, batch, made)
        hinges = {"real": relu(1 - real_B), "fakes": torch.stack([relu(1 + fake_B) for fake_B in fakes]).sum(0)}
        return hinges | {"penalty": found["penalty"]}

    return changed


def hinge_of_g(terms: TermsOf) -> TermsOf:
    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = terms(players, batch, noise, made)
        scores_KB = _logits(players, made().shown).unflatten(0, (-1, len(batch.images)))
        return found | {"adversarial": -scores_KB.sum(0)}

    return changed


def one_direction(terms: TermsOf) -> TermsOf:
    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        assert noise.directions is not None
        return terms(players, batch, noise._replace(directions=noise.directions[:1].expand_as(noise.directions)), made)

    return changed


def real_slopes_alone(terms: TermsOf) -> TermsOf:
    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        assert noise.directions is not None
        found = terms(players, batch, noise._replace(directions=None), made)
        ends = players["discriminator"].learner(torch.cat([batch.images, batch.images + STEP * noise.directions]))
        return found | {"penalty": squared_slopes(*ends.logits_B.chunk(2))}

    return changed


@dataclass
class Lazily:
    """Exact slopes by a second backward, every sixteenth step, sixteen times as heavy (Karras et al. 2020)."""

    terms: TermsOf
    every: int = 16
    steps: int = 0

    def __call__(self, players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = self.terms(players, batch, noise._replace(directions=None), made)
        self.steps += 1
        if self.steps % self.every:
            return found | {"penalty": torch.zeros(len(batch.images))}
        seen = torch.cat([batch.images, made().shown.detach()]).requires_grad_()
        (slopes,) = torch.autograd.grad(_logits(players, seen).sum(), seen, create_graph=True)
        squares_B = slopes.square().flatten(1).sum(1).unflatten(0, (-1, len(batch.images))).sum(0)
        return found | {"penalty": self.every * squares_B}


@dataclass
class LeCam:
    """Scores are pulled to the running mean of the other side's (Tseng et al. 2021, arXiv 2104.03310, eq. 3)."""

    terms: TermsOf
    weight: float = 0.1
    real: float = 0.0
    fake: float = 0.0

    def __call__(self, players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = self.terms(players, batch, noise, made)
        real_B, *fakes = _judged(players, batch, made)
        fake_B = torch.stack(fakes).mean(0)
        self.real = 0.99 * self.real + 0.01 * float(real_B.detach().mean())
        self.fake = 0.99 * self.fake + 0.01 * float(fake_B.detach().mean())
        pulled = relu(real_B - self.fake).square() + relu(self.real - fake_B).square()
        return found | {"lecam": self.weight * pulled}


def augmented(terms: TermsOf) -> TermsOf:
    """DiffAugment (Zhao et al. 2020, arXiv 2006.10738): all that D sees is moved and lightened alike, gradients too."""

    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        draft = made()
        generator = torch.Generator().manual_seed(int(noise.prior_BZ.double().sum().abs() * 1e6))
        moved: Made = draft._replace(shown=_moved(draft.shown, generator))  # type: ignore[attr-defined]
        found = terms(players, Batch(_moved(batch.images, generator)), noise, lambda: moved)
        if isinstance(draft, Passed) and "reconstruction" in found:
            found["reconstruction"] = draft.reconstruction.nats(batch.images)
        return found

    return changed


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    reach = images.shape[-1] // 8
    padded = pad(images, (reach,) * 4)
    count, _, height, width = images.shape
    down, right = torch.randint(2 * reach + 1, (2, count, 1, 1, 1), generator=generator)
    rows = (torch.arange(height)[None, None, :, None] + down).expand(-1, 1, -1, width)
    columns = (torch.arange(width)[None, None, None, :] + right).expand(-1, 1, height, -1)
    every = torch.arange(count)[:, None, None, None]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    light = torch.rand(count, 1, 1, 1, generator=generator) - 0.5
    return padded[every, channels, rows, columns] + light


def free_bits(terms: TermsOf) -> TermsOf:
    """A unit's KL below 0.25 nats in the batch's mean costs nothing (Kingma et al. 2016, arXiv 1606.04934, C.8)."""

    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        passed = made()
        assert isinstance(passed, Passed)
        units_BZ = kl_of_units(passed.mean_BZ, passed.log_var_BZ)
        freed = units_BZ.mean(0).clamp(min=0.25).sum().expand(len(batch.images))
        return terms(players, batch, noise, made) | {"kl": freed}

    return changed


@dataclass
class Cyclical:
    """beta rises from 0 over the first half of every 12,000 images (Fu et al. 2019, arXiv 1903.10145)."""

    terms: TermsOf
    every: int = 12_000
    seen: int = 0

    def __call__(self, players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = self.terms(players, batch, noise, made)
        self.seen += len(batch.images)
        return found | {"kl": min(1.0, 2 * (self.seen % self.every) / self.every) * found["kl"]}


def adaptive(terms: TermsOf) -> TermsOf:
    """lambda times the ratio of the reconstruction's to the adversarial gradient's norm at the decoder's last
    layer (Esser et al. 2021, arXiv 2012.09841, eq. 7)."""

    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        found = terms(players, batch, noise, made)
        last = players["autoencoder"].network.decoder.last.weight  # type: ignore[union-attr]
        norms = [
            torch.autograd.grad(found[name].mean(), last, retain_graph=True)[0].norm()  # type: ignore[arg-type]
            for name in ("reconstruction", "adversarial")
        ]
        ratio = (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
        return found | {"adversarial": ratio.detach() * found["adversarial"]}

    return changed


def features_too(terms: TermsOf) -> TermsOf:
    """The likelihood on pixels, and a unit Gaussian on the second layer of D beside it."""

    def changed(players: Players, batch: Batch, noise: Noise, made: Make) -> Terms:
        passed = made()
        assert isinstance(passed, Passed)
        critic = players["discriminator"].network
        with torch.no_grad():
            real = critic(batch.images).features[1].float()
        ours = critic(passed.reconstruction.presented()).features[1].float()
        return terms(players, batch, noise, made) | {"features": 0.5 * (real - ours).square().flatten(1).sum(1)}

    return changed


def spectral(model: VAEGAN) -> None:
    """Every layer of D has norm 1 (Miyato et al. 2018, arXiv 1802.05957)."""
    for module in list(model.discriminator.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.utils.parametrizations.spectral_norm(module)


class Branch(nn.Module):
    """x + what two 3x3 convolutions make of it: nothing at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.widen = nn.Conv2d(channels // 2, channels, 3, padding=1)
        for last in self.widen.parameters():
            nn.init.zeros_(last)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.widen(relu(self.narrow(relu(x))))
        return x + branch


def residual(model: VAEGAN) -> None:
    """A branch after every convolution that changes the side, in all three networks."""
    for network in (model.encoder, model.decoder, model.discriminator):
        for block in network.blocks:  # type: ignore[union-attr]
            block.convolution = nn.Sequential(block.convolution, Branch(block.convolution.out_channels))


VARIANTS = (
    Variant(name="the preset", source=""),
    Variant(name="no penalty", source="Larsen et al. 2016", settings={"penalty": 0.0}),
    Variant(name="penalty x 4", source="Mescheder et al. 2018", settings={"penalty": 1.0}),
    Variant(name="R1 alone", source="Mescheder et al. 2018", discriminator=real_slopes_alone),
    Variant(name="exact slopes, lazily", source="Karras et al. 2020", discriminator=Lazily),
    Variant(name="one direction a batch", source="", discriminator=one_direction),
    Variant(
        name="relativistic pairs",
        source="Jolicoeur-Martineau 2018; Huang et al. 2024",
        discriminator=pairs_of_d,
        autoencoder=pairs_of_g,
    ),
    Variant(name="hinge", source="Lim & Ye 2017", discriminator=hinge_of_d, autoencoder=hinge_of_g),
    Variant(name="spectral norm", source="Miyato et al. 2018", prepared=spectral),
    Variant(name="residual branches", source="Goyal et al. 2017; Zhang et al. 2019", prepared=residual),
    Variant(name="DiffAugment", source="Zhao et al. 2020", discriminator=augmented, autoencoder=augmented),
    Variant(name="LeCam", source="Tseng et al. 2021", discriminator=LeCam),
    Variant(name="lambda warms up", source="Esser et al. 2021", settings={"lambda_warmup": 12_000}),
    Variant(name="adaptive lambda", source="Esser et al. 2021", settings={"lambda": 1.0}, autoencoder=adaptive),
    Variant(name="lambda / 5", source="", settings={"lambda": 100.0}),
    Variant(name="reconstructions judged too", source="Larsen et al. 2016", settings={"judge_reconstructions": True}),
    Variant(name="features of D too", source="Larsen et al. 2016", autoencoder=features_too),
    Variant(name="free bits", source="Kingma et al. 2016", autoencoder=free_bits),
    Variant(name="cyclical beta", source="Fu et al. 2019", autoencoder=Cyclical),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, images=48_000, out="runs/recipes")
    parser.add_argument("--seeds", type=int, default=3, help="of each (default: 3)")
    given = parser.parse_args(argv)
    print(machine(), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    jobs = [(v.name, seed) for seed in range(given.seeds) for v in VARIANTS if given.only in v.name]
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name, _ in jobs}
    with pool(given.jobs) as workers:
        for (name, seed), figures in zip(jobs, workers.map(partial(result, given), jobs), strict=True):
            print(f"{name}, seed {seed}: " + ", ".join(f"{title} {figures[of]:.2f}" for title, of in COLUMNS.items()))
            found[name].append(figures)
    sources = {variant.name: variant.source for variant in VARIANTS}
    rows = [
        [name, sources[name], *(spread([one[of] for one in results], ".2f") for of in COLUMNS.values())]
        for name, results in found.items()
    ]
    table(f"{given.data}, {given.images:,} images seen, {given.seeds} seeds", ["", "source", *COLUMNS], rows)


def result(given: argparse.Namespace, job: tuple[str, int]) -> Mapping[str, float]:
    """What a variant comes to with a seed: computed once, then read."""
    name, seed = job
    kept: Path = given.out / f"{name.replace(' ', '-').replace('/', 'over')}-{seed}.json"
    if not kept.exists():
        (variant,) = (one for one in VARIANTS if one.name == name)
        recipe = merge(read_tree(given.preset), {"objective": dict(variant.settings)})
        settings = settings_of(recipe, given, seed)
        autoencoder = trained(settings, change=variant.turns, prepared=variant.prepared)
        kept.write_text(json.dumps(measured(autoencoder, settings), indent=2) + "\n")
    figures: Mapping[str, float] = json.loads(kept.read_text())
    return figures


if __name__ == "__main__":
    main()
