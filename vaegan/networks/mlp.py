"""The plain networks: one hidden layer each. B batch, X pixels, H hidden, Z latent."""

from math import prod

import torch
from torch import Tensor, nn

from vaegan import config
from vaegan.networks.ports import DecoderNetwork, DiscriminatorNetwork, EncoderNetwork, Judgement, Networks, Shape


class Encoder(EncoderNetwork):
    """x of any shape with X numbers each -> (mean_BZ, log_var_BZ)."""

    def __init__(self, input_size: int, hidden_size: int, latent_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.fc_mean = nn.Linear(hidden_size, latent_size)
        self.fc_var = nn.Linear(hidden_size, latent_size)  # the log-variance, under the article's name

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BH = torch.relu(self.fc1(x.flatten(1)))
        return self.fc_mean(hidden_BH), self.fc_var(hidden_BH)


class Decoder(DecoderNetwork):
    """z_BZ -> image in [0, 1], (B, X), or (B, *shape) where a shape of X numbers is given."""

    def __init__(
        self, latent_size: int, hidden_size: int, output_size: int, *, shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(latent_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, output_size)
        self.shape = shape or (output_size,)
        self.latent_size = latent_size

    def logits(self, z_BZ: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(z_BZ))).unflatten(1, self.shape)

    def forward(self, z_BZ: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z_BZ))


class Discriminator(DiscriminatorNetwork):
    """x of any shape with X numbers each -> probability of being real, (B, 1)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, 1)

    def judge(self, x: Tensor) -> Judgement:
        before_BH = self.fc1(x.flatten(1))
        return Judgement(self.fc2(torch.relu(before_BH)).squeeze(1), (before_BH,))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.judge(x).logits_B).unsqueeze(1)


def build(settings: config.Networks, shape: Shape, maps: int) -> Networks:
    """The plain three for images of any shape."""
    channels, height, width = shape
    pixels, hidden, latent = prod(shape), settings.width, settings.latent
    emitted = (maps * channels, height, width)
    return Networks(
        Encoder(pixels, hidden, latent),
        Decoder(latent, hidden, maps * pixels, shape=emitted),
        Discriminator(pixels, hidden),
    )
