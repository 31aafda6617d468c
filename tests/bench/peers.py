"""What the step is compared with: pythae's trainer, and loops written by hand with equal arithmetic.

pythae 0.1.2 (extra `bench`) trains Larsen's VAE-GAN: D on images and prior samples, the likelihood on D's features, one
forward, then three backwards over it. B batch, Z latent.
"""

import logging
import tempfile
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vaegan import VAEGAN
from vaegan.objective import kl

Step = Callable[[], object]


def pythae_epoch(
    model: VAEGAN, images: Tensor, batch: int, feature_layer: int, lr: float = 3e-4, margin: float = 1e9
) -> Step:
    """An epoch of `CoupledOptimizerAdversarialTrainer.train_step` on these networks; images: (N, C, H, W) in [0, 1].

    Everything that is not an argument is pythae's own default. feature_layer: of D, -1 for the last. margin: of its
    gate, so wide unless given that nobody ever rests.
    """
    logging.disable(logging.INFO)
    from pythae import models
    from pythae.data.datasets import BaseDataset
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
    from pythae.trainers import CoupledOptimizerAdversarialTrainer, CoupledOptimizerAdversarialTrainerConfig
    from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = model.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mean_BZ, log_var_BZ = self.network(x)
            return ModelOutput(embedding=mean_BZ, log_covariance=log_var_BZ)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = model.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.network(z))

    class Discriminator(BaseDiscriminator):  # type: ignore[misc]
        depth = len(model.discriminator.blocks)  # type: ignore[arg-type]

        def __init__(self) -> None:
            super().__init__()
            self.network = model.discriminator

        def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> ModelOutput:
            if output_layer_levels is None:
                return ModelOutput(embedding=self.network(x))
            (layer,) = output_layer_levels
            hidden = torch.relu(self.network.stem(2 * x - 1))
            for block in self.network.blocks[: layer - 1]:
                hidden = block(hidden)
            return ModelOutput(**{f"embedding_layer_{layer}": self.network.blocks[layer - 1].convolution(hidden)})

    settings = models.VAEGANConfig(
        input_dim=tuple(images.shape[1:]),
        latent_dim=model.decoder.latent_size,
        reconstruction_layer=feature_layer,
        margin=margin,
    )
    peer = models.VAEGAN(settings, Encoder(), Decoder(), Discriminator())
    config = CoupledOptimizerAdversarialTrainerConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        no_cuda=not images.is_cuda,
        encoder_learning_rate=lr,
        decoder_learning_rate=lr,
        discriminator_learning_rate=lr,
    )
    data = BaseDataset(images.cpu(), torch.zeros(len(images)))
    trainer = CoupledOptimizerAdversarialTrainer(peer, data, None, config)
    trainer.prepare_training()
    trainer.callback_handler = CallbackHandler([TrainingCallback()], peer)  # without its progress bars
    return lambda: trainer.train_step(1)


def bare_plain(model: VAEGAN, images: Tensor, bf16: bool) -> Step:
    """The equations with pixels, three turns, as one would write them down."""
    encoder, decoder, discriminator = model.encoder, model.decoder, model.discriminator
    d_opt, g_opt, vae_opt = (
        torch.optim.Adam(parameters, 3e-4, (0.5, 0.999), fused=True)
        for parameters in (
            discriminator.parameters(),
            decoder.parameters(),
            [*encoder.parameters(), *decoder.parameters()],
        )
    )
    size, latent = len(images), decoder.latent_size
    mixed = _mixed(images, bf16)

    def step() -> None:
        prior_BZ, noise_BZ = torch.randn(2, size, latent, device=images.device)
        with mixed():
            samples = torch.sigmoid(decoder.logits(prior_BZ).float())
            logits = discriminator.judge(torch.cat([images, samples.detach()])).logits_B.float()
        real_B, fake_B = logits.split(size)
        _descend(d_opt, (softplus(-real_B) + softplus(fake_B)).mean())
        discriminator.requires_grad_(False)
        with mixed():
            logits = discriminator.judge(samples).logits_B.float()
        _descend(g_opt, softplus(-logits).mean())
        with mixed():
            mean_BZ, log_var_BZ = (found.float() for found in encoder(images))
            raw = decoder.logits(mean_BZ + noise_BZ * torch.exp(log_var_BZ / 2)).float()
        nats_B = 0.5 * (images - torch.sigmoid(raw)).square().flatten(1).sum(1)
        _descend(vae_opt, (nats_B + kl(mean_BZ, log_var_BZ)).mean())
        discriminator.requires_grad_(True)

    return step


def bare_joint(model: VAEGAN, images: Tensor, bf16: bool, feature_layer: int) -> Step:
    """Larsen's algorithm without reconstructions for D, as pythae has it: two turns."""
    encoder, decoder, discriminator = model.encoder, model.decoder, model.discriminator
    d_opt, vae_opt = (
        torch.optim.Adam(parameters, 3e-4, (0.5, 0.999), fused=True)
        for parameters in (discriminator.parameters(), [*encoder.parameters(), *decoder.parameters()])
    )
    size, latent = len(images), decoder.latent_size
    mixed = _mixed(images, bf16)

    def step() -> None:
        prior_BZ, noise_BZ = torch.randn(2, size, latent, device=images.device)
        with mixed():
            mean_BZ, log_var_BZ = (found.float() for found in encoder(images))
            z_BZ = mean_BZ + noise_BZ * torch.exp(log_var_BZ / 2)
            made = torch.sigmoid(decoder.logits(torch.cat([z_BZ, prior_BZ])).float())
            logits = discriminator.judge(torch.cat([images, made[size:].detach()])).logits_B.float()
        real_B, fake_B = logits.split(size)
        _descend(d_opt, (softplus(-real_B) + softplus(fake_B)).mean())
        discriminator.requires_grad_(False)
        with mixed():
            judged = discriminator.judge(made)
            with torch.no_grad():
                real = discriminator.judge(images).features[feature_layer - 1].float()
        features = judged.features[feature_layer - 1][:size].float()
        nats_B = 0.5 * (real - features).square().flatten(1).sum(1)
        adversarial_B = softplus(-judged.logits_B[size:].float())
        _descend(vae_opt, (nats_B + kl(mean_BZ, log_var_BZ) + adversarial_B).mean())
        discriminator.requires_grad_(True)

    return step


def _mixed(images: Tensor, bf16: bool) -> Callable[[], object]:
    return (lambda: torch.autocast(images.device.type, torch.bfloat16)) if bf16 else nullcontext


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
