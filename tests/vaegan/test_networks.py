"""Shapes, ranges and refusals of the networks. B batch, C channels, S side."""

import pytest
import torch

from tests.vaegan.small import CONV, MLP
from vaegan import build, config

BERNOULLI = config.Likelihood(kind="bernoulli")
WIDTHS = {32: (128, 192, 256), 64: (128, 256, 256), 128: (128, 256, 256, 256)}
"""Of D's stride-2 convolutions where `width` is 64."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64, 128])
def test_convolutional_networks_fit_their_images(side: int, channels: int) -> None:
    shape = (channels, side, side)
    model, x = build(CONV, BERNOULLI, shape), torch.rand(2, channels, side, side)
    x_hat, d_real, d_fake, mean, log_var = model(x)
    assert x_hat.shape == x.shape
    assert d_real.shape == d_fake.shape == (2, 1)
    assert mean.shape == log_var.shape == (2, CONV.latent)
    for probability in (x_hat, d_real, d_fake):
        assert ((probability > 0) & (probability < 1)).all()
    z = torch.randn(2, CONV.latent)
    torch.testing.assert_close(model.decoder(z), model.decoder.logits(z).sigmoid())
    logits_B, features = model.discriminator.judge(x)
    torch.testing.assert_close(d_real, logits_B.sigmoid().unsqueeze(1))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (width * CONV.width // 64, side >> depth, side >> depth) for depth, width in enumerate(WIDTHS[side], start=1)
    ]


def test_at_64_px_the_layers_are_larsens() -> None:
    with torch.device("meta"):
        model = build(config.Networks(latent=128), config.Likelihood(), (3, 64, 64))
    weights = {name: tuple(value.shape) for name, value in model.state_dict().items() if name.endswith("weight")}
    assert {name: shape for name, shape in weights.items() if ".norm." not in name} == {
        "encoder.blocks.0.convolution.weight": (64, 3, 5, 5),
        "encoder.blocks.1.convolution.weight": (128, 64, 5, 5),
        "encoder.blocks.2.convolution.weight": (256, 128, 5, 5),
        "encoder.fc1.weight": (1024, 8 * 8 * 256),
        "encoder.fc_mean.weight": (128, 1024),
        "encoder.fc_var.weight": (128, 1024),
        "decoder.fc1.weight": (8 * 8 * 256, 128),
        "decoder.blocks.0.convolution.weight": (256, 256, 5, 5),
        "decoder.blocks.1.convolution.weight": (256, 128, 5, 5),
        "decoder.blocks.2.convolution.weight": (128, 32, 5, 5),
        "decoder.last.weight": (3, 32, 5, 5),
        "discriminator.stem.weight": (32, 3, 5, 5),
        "discriminator.blocks.0.convolution.weight": (128, 32, 5, 5),
        "discriminator.blocks.1.convolution.weight": (256, 128, 5, 5),
        "discriminator.blocks.2.convolution.weight": (256, 256, 5, 5),
        "discriminator.fc1.weight": (512, 8 * 8 * 256),
        "discriminator.fc2.weight": (1, 512),
    }


@pytest.mark.parametrize("shape", [(1, 48, 48), (1, 32, 64), (3, 28, 28)])
def test_an_image_without_a_layout_is_refused_with_a_remedy(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"not {shape[1]} x {shape[2]}; prepare the data with --size 32 .*family=mlp"):
        build(CONV, BERNOULLI, shape)
    # the remedy holds
    model = build(MLP, BERNOULLI, shape)
    assert model(torch.rand(2, *shape))[0].shape == (2, *shape)


@pytest.mark.parametrize(("networks", "shape"), [(CONV, (3, 32, 32)), (MLP, (2, 3, 4))], ids=["conv", "mlp"])
def test_each_image_is_treated_alone(networks: config.Networks, shape: tuple[int, int, int]) -> None:
    model = build(networks, BERNOULLI, shape)
    x, z = torch.rand(4, *shape), torch.randn(4, networks.latent)
    for network, inputs in ((model.encoder, x), (model.decoder, z), (model.discriminator, x)):
        together = network(inputs)
        one_by_one = [network(row) for row in inputs.split(1)]
        if isinstance(together, tuple):
            for part, rows in zip(together, zip(*one_by_one, strict=True), strict=True):
                torch.testing.assert_close(part, torch.cat(rows))
        else:
            torch.testing.assert_close(together, torch.cat(one_by_one))


def test_features_are_read_before_normalisation() -> None:
    model, x = build(CONV, BERNOULLI, (1, 32, 32)), torch.rand(2, 1, 32, 32)
    before = model.discriminator.judge(x).features
    for name, parameter in model.discriminator.named_parameters():
        if name == "blocks.1.norm.weight":
            torch.nn.init.constant_(parameter, 3.0)
    after = model.discriminator.judge(x).features
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2])


def test_no_normalisation_means_none() -> None:
    with_norm, without = (
        build(config.Networks(latent=3, width=8, norm=norm), BERNOULLI, (1, 32, 32)) for norm in ("group", "none")
    )
    assert any(isinstance(module, torch.nn.GroupNorm) for module in with_norm.modules())
    assert not any("norm" in name for name in without.state_dict())
    assert not any("Norm" in type(module).__name__ for module in without.modules())


def test_no_network_has_buffers_that_ranks_could_disagree_on() -> None:
    for networks, shape in ((CONV, (1, 32, 32)), (MLP, (2, 3, 4))):
        assert not list(build(networks, BERNOULLI, shape).buffers())


def test_the_autoencoder_interpolates_between_its_reconstructions_and_samples_by_seed() -> None:
    model = build(MLP, BERNOULLI, (2, 3, 4)).autoencoder
    a, b = torch.rand(2, 2, 3, 4)
    line = model.interpolate(a, b, 5)
    torch.testing.assert_close(line[[0, 4]], model.reconstruct(torch.stack([a, b])))
    middle = (model.encode(a[None]) + model.encode(b[None])) / 2
    torch.testing.assert_close(line[2:3], model.decode(middle))
    drawn = [model.sample(3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
