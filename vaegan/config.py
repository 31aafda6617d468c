"""Settings of the networks, the objective and the optimisers. Frozen, keyword-only; imports no torch.

Units: likelihoods and KL are nats per image, summed over pixels and latents, so beta = 1 is the true ELBO. Pixels are
in [0, 1]. Spans of training are counted in images seen.
"""

from dataclasses import dataclass, field
from typing import Literal


def yaml_name(field_name: str) -> str:
    """`lambda` is a keyword of Python, so its field is `lambda_` (PEP 8); people write `lambda`."""
    return field_name.rstrip("_")


STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False, "alias_generator": yaml_name}
"""What pydantic reads when it validates one of these classes; without it unknown keys would pass unseen."""


def require(holds: bool, field_name: str, value: object, expected: str) -> None:
    """Raise ValueError in the form every bad setting is reported in: place, value, remedy."""
    if not holds:
        raise ValueError(f"{field_name} is {value!r}; expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Encoder, decoder and discriminator of one family, sized for the images they are given."""

    __pydantic_config__ = STRICT

    family: Literal["mlp", "conv"] = "conv"
    """`mlp`: one hidden layer each, any image size. `conv`: Larsen's layout, 32, 64 or 128 px."""
    latent: int = 64
    """Size Z of the latent code, >= 1."""
    width: int = 64
    """`conv`: channels of the encoder's first convolution (Larsen: 64), all others in proportion, a multiple of 8.
    `mlp`: hidden units."""
    norm: Literal["group", "none"] = "group"
    """GroupNorm after each hidden convolution, or none; batch statistics would differ between ranks."""

    def __post_init__(self) -> None:
        require(self.latent >= 1, "latent", self.latent, "a whole number >= 1")
        require(self.width >= 1, "width", self.width, "a whole number >= 1")
        if self.family == "mlp":
            require(self.norm == "none", "norm", self.norm, "'none': the mlp family has no normalisation")
        else:
            require(self.width % 8 == 0, "width", self.width, "a multiple of 8 for the conv family")


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """p(x|z): what the decoder's output means."""

    __pydantic_config__ = STRICT

    kind: Literal["gaussian", "bernoulli"] = "gaussian"
    variance: Literal["fixed", "learned", "per-pixel"] = "fixed"
    """Of the Gaussian: a constant, one learned number, or one number a pixel and channel from the decoder."""
    std: float = 1.0
    """Standard deviation of a pixel in [0, 1]: the constant, or, less the floor, where learning starts. > 0."""
    floor: float = 0.01
    """Learned standard deviations stay above this: without it the likelihood of a constant region is unbounded. > 0."""

    def __post_init__(self) -> None:
        require(self.std > 0, "std", self.std, "a number > 0")
        require(self.floor > 0, "floor", self.floor, "a number > 0")
        if self.kind == "bernoulli":
            require(self.variance == "fixed", "variance", self.variance, "'fixed': a Bernoulli pixel has no variance")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Larsen's equilibrium: whoever is too far ahead rests. Losses are mean nats, ln 2 = 0.69 at balance."""

    __pydantic_config__ = STRICT

    equilibrium: float = 0.68
    margin: float = 0.35
    """D rests when its loss on real or on generated images is under equilibrium - margin; the decoder rests when either
    is over equilibrium + margin; if both would rest, neither does. The encoder and a learned variance never rest."""

    def __post_init__(self) -> None:
        require(self.margin > 0, "margin", self.margin, "a number > 0")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """L = L_VAE + lambda * L_GAN, and who descends which part of it when."""

    __pydantic_config__ = STRICT

    schedule: Literal["plain", "joint"] = "plain"
    """`plain`: D; then the generator on prior samples; then encoder and decoder on L_VAE. `joint`: D; then encoder and
    decoder on everything at once, the adversarial gradient kept out of the encoder (Larsen 2016)."""
    likelihood: Likelihood = field(default_factory=Likelihood)
    reconstruction: Literal["pixels", "features"] = "pixels"
    """Where the likelihood is taken: on pixels, or as a unit Gaussian on D's features (Larsen 2016, eq. 7)."""
    feature_layer: int = 1
    """Which of D's layers, counting its stride-2 convolutions (or its hidden layer) from 1. Larsen: 2 at 32 px,
    3 at 64 px."""
    adversarial: Literal["non-saturating", "saturating"] = "non-saturating"
    """The generator's term: -log D(G(z)), or log(1 - D(G(z))) as the equation has it."""
    penalty: float = 0.0
    """gamma of D's zero-centred gradient penalties, >= 0: gamma / 2 times its squared slope at real images (R1) and at
    generated ones (R2), which keeps the game from circling (Mescheder et al. 2018, arXiv 1801.04406)."""
    judge_reconstructions: bool = False
    """`joint` only: D, and the decoder's adversarial term, see reconstructions beside prior samples."""
    beta: float = 1.0
    """Weight of the KL term, >= 0."""
    beta_warmup: int = 0
    """Images over which beta rises linearly from 0."""
    lambda_: float = 1.0
    """Weight of the adversarial term, >= 0. In `joint` it stands in the sum. In `plain` the generator has a turn and an
    optimiser of its own, so it scales that turn's learning rate: the same thing for gradient descent, and
    the only thing that Adam and RMSProp, which normalise the size of a loss away, do not undo."""
    lambda_warmup: int = 0
    """Images over which lambda rises linearly from 0."""
    gate: Gate | None = None
    """Larsen's equilibrium gate, off unless given."""

    def __post_init__(self) -> None:
        require(self.beta >= 0, "beta", self.beta, "a number >= 0")
        require(self.lambda_ >= 0, "lambda", self.lambda_, "a number >= 0")
        require(self.beta_warmup >= 0, "beta_warmup", self.beta_warmup, "a number of images >= 0")
        require(self.lambda_warmup >= 0, "lambda_warmup", self.lambda_warmup, "a number of images >= 0")
        require(self.penalty >= 0, "penalty", self.penalty, "a number >= 0")
        require(self.feature_layer >= 1, "feature_layer", self.feature_layer, "a whole number >= 1")
        if self.schedule == "plain":
            require(not self.judge_reconstructions, "judge_reconstructions", True, "false, or schedule: joint")
        if self.reconstruction == "features":
            variance = self.likelihood.variance
            require(variance == "fixed", "likelihood.variance", variance, "'fixed' with reconstruction: features")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Of one player."""

    __pydantic_config__ = STRICT

    kind: Literal["adam", "rmsprop"] = "adam"
    lr: float = 3e-4
    """Learning rate, > 0."""
    momentum: float = 0.5
    """Adam's beta_1, RMSProp's momentum; in [0, 1)."""
    decay: float = 0.999
    """Adam's beta_2, RMSProp's alpha; in [0, 1)."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", self.lr, "a number > 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "a number in [0, 1)")
        require(0 <= self.decay < 1, "decay", self.decay, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Optimizers:
    """One each for the players. The generator plays apart only in the `plain` schedule."""

    __pydantic_config__ = STRICT

    autoencoder: Optimizer = field(default_factory=Optimizer)
    discriminator: Optimizer = field(default_factory=Optimizer)
    generator: Optimizer = field(default_factory=Optimizer)
