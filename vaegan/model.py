"""The autoencoder, and the whole VAE-GAN. B batch, X one image, Z latent, P prior samples."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from vaegan import config, likelihood
from vaegan.likelihood import Distribution, Likelihood
from vaegan.networks import build as build_networks
from vaegan.networks import mlp
from vaegan.networks.ports import DecoderNetwork, DiscriminatorNetwork, EncoderNetwork, Judgement, Shape
from vaegan.precision import lowered, raised


def reparameterize(mean_BZ: Tensor, log_var_BZ: Tensor, noise_BZ: Tensor) -> Tensor:
    """z = mean + noise * exp(log_var / 2), with noise ~ N(0, 1)."""
    return mean_BZ + noise_BZ * torch.exp(log_var_BZ / 2)


class Passed(NamedTuple):
    """One pass of images, and of codes beside them, through the autoencoder."""

    mean_BZ: Tensor
    log_var_BZ: Tensor
    reconstruction: Distribution
    """p(x|z), z drawn from the posterior."""
    shown: Tensor
    """What the codes beside it decode to, as D sees it: reconstructions from z cut off from the encoder where asked
    for (B of them), then the prior samples (P)."""


class Learner(nn.Module):
    """A forward that a player learns through and its opponents look through: what DDP wraps, and compilers compile."""

    precision: torch.dtype | None = None
    """What its layers compute in while it learns; None is that of its weights. What comes out is at least float32."""


class Autoencoder(Learner):
    """Encoder, decoder and likelihood: the VAE side, and what is kept when training is over."""

    def __init__(self, encoder: EncoderNetwork, decoder: DecoderNetwork, likelihood: Likelihood) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, x: Tensor, noise_BZ: Tensor, prior_PZ: Tensor | None = None, *, detached: bool = False) -> Passed:
        """Encode x, then decode `[z, z.detach() if detached, prior]` in one pass (Larsen 2016, one backward)."""
        with lowered(x.device, self.precision):
            mean_BZ, log_var_BZ = map(raised, self.encoder(x))
            z_BZ = reparameterize(mean_BZ, log_var_BZ, noise_BZ)
            codes = [z_BZ, *([z_BZ.detach()] if detached else []), *([] if prior_PZ is None else [prior_PZ])]
            raw = raised(self.decoder.logits(torch.cat(codes)))
        own = self.likelihood(raw[: len(x)])
        return Passed(mean_BZ, log_var_BZ, own, self.likelihood(raw[len(x) :]).presented())

    def encode(self, x: Tensor) -> Tensor:
        """The posterior's mean of each image, (B, Z)."""
        mean_BZ: Tensor = self.encoder(x)[0]
        return mean_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """The image of each code, in [0, 1]."""
        distribution: Distribution = self.likelihood(self.decoder.logits(z_BZ))
        return distribution.presented()

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Images of `count` draws from the prior; drawn on the CPU, so a seed means the same on every device."""
        like = next(self.decoder.parameters())
        z_BZ = torch.randn(count, self.decoder.latent_size, generator=generator, dtype=like.dtype)
        return self.decode(z_BZ.to(like.device))

    def interpolate(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Images along the straight line between the codes of two images, both ends included, (steps, ...)."""
        ends_2Z = self.encode(torch.stack([a, b]))
        along = torch.linspace(0, 1, steps, dtype=ends_2Z.dtype, device=ends_2Z.device)
        return self.decode(torch.lerp(ends_2Z[:1], ends_2Z[1:], along.unsqueeze(1)))


class Generator(Learner):
    """The decoder alone, as it learns from the adversary: codes in, raw output out."""

    def __init__(self, decoder: DecoderNetwork) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z_BZ: Tensor) -> Tensor:
        """(B, maps * C, H, W); the likelihood says what it means."""
        with lowered(z_BZ.device, self.precision):
            return raised(self.decoder.logits(z_BZ))


class Critic(Learner):
    """The discriminator, as it learns and as it is learnt from: images in, logits and features out."""

    def __init__(self, discriminator: DiscriminatorNetwork) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> Judgement:
        """Features stay in the precision they were computed in: most are never looked at."""
        with lowered(x.device, self.precision):
            judged = self.discriminator.judge(x)
        return Judgement(raised(judged.logits_B), judged.features)


class VAEGAN(nn.Module):
    """Encoder, decoder and discriminator.

    `VAEGAN(input_size, hidden_size, latent_size)` gives the plain networks, under the names that a state dict of the
    published listing has; `VAEGAN.of` and `vaegan.build` take any others.
    """

    def __init__(self, input_size: int, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self._hold(
            mlp.Encoder(input_size, hidden_size, latent_size),
            mlp.Decoder(latent_size, hidden_size, input_size),
            mlp.Discriminator(input_size, hidden_size),
            likelihood.build(config.Likelihood(kind="bernoulli")),
        )

    @classmethod
    def of(
        cls,
        encoder: EncoderNetwork,
        decoder: DecoderNetwork,
        discriminator: DiscriminatorNetwork,
        likelihood: Likelihood,
    ) -> Self:
        """A VAE-GAN of these networks."""
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._hold(encoder, decoder, discriminator, likelihood)
        return model

    def _hold(
        self,
        encoder: EncoderNetwork,
        decoder: DecoderNetwork,
        discriminator: DiscriminatorNetwork,
        likelihood: Likelihood,
    ) -> None:
        self.encoder = encoder
        self.decoder = decoder
        self.discriminator = discriminator
        self.likelihood = likelihood

    @property
    def autoencoder(self) -> Autoencoder:
        """The VAE side, sharing these weights."""
        return Autoencoder(self.encoder, self.decoder, self.likelihood)

    def reparameterize(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """mean + eps * exp(log_var / 2), eps from torch's global generator."""
        return reparameterize(mean, log_var, torch.randn_like(mean))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(x_hat, d_real, d_fake, mean, log_var): d_real = D(x) and d_fake = D(x_hat) are probabilities, (B, 1)."""
        mean, log_var = self.encoder(x)
        x_hat = self.likelihood(self.decoder.logits(self.reparameterize(mean, log_var))).presented()
        return x_hat, self.discriminator(x), self.discriminator(x_hat), mean, log_var

    def reconstruct(self, x: Tensor) -> Tensor:
        """The image of each image's mean code."""
        return self.autoencoder.reconstruct(x)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Images of `count` draws from the prior."""
        return self.autoencoder.sample(count, generator)


def build(networks: config.Networks, likelihood_settings: config.Likelihood, shape: Shape) -> VAEGAN:
    """The VAE-GAN that the settings describe, for images of `shape` (C, H, W).

    Raises ValueError where the networks can't take that shape. Weights come from torch's global generator.
    """
    meaning = likelihood.build(likelihood_settings)
    encoder, decoder, discriminator = build_networks(networks, shape, meaning.maps)
    return VAEGAN.of(encoder, decoder, discriminator, meaning)
