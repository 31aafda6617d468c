"""What was published: names, shapes, ranges, and that plain training lowers L. B batch."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

from tests.vaegan.small import drawn
from vaegan import VAEGAN, Decoder, Discriminator, Encoder, build, config
from vaegan.model import reparameterize
from vaegan.objective import players, turns, weights_at
from vaegan.step import Noise, step


def test_the_parts_carry_the_published_names_and_classes() -> None:
    model = VAEGAN(784, 400, 20)
    assert {name: type(part) for name, part in model.named_children() if name != "likelihood"} == {
        "encoder": Encoder,
        "decoder": Decoder,
        "discriminator": Discriminator,
    }


def test_the_state_dict_is_that_of_the_published_listing() -> None:
    layers = {
        "encoder.fc1": (400, 784),
        "encoder.fc_mean": (20, 400),
        "encoder.fc_var": (20, 400),
        "decoder.fc1": (400, 20),
        "decoder.fc2": (784, 400),
        "discriminator.fc1": (400, 784),
        "discriminator.fc2": (1, 400),
    }
    listing: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    listing |= {f"{name}.bias": (shape[0],) for name, shape in layers.items()}
    assert {name: tuple(value.shape) for name, value in VAEGAN(784, 400, 20).state_dict().items()} == listing


def test_forward_gives_images_and_probabilities_in_the_published_order() -> None:
    model, x = VAEGAN(784, 400, 20), torch.rand(5, 784)
    x_hat, d_real, d_fake, mean, log_var = model(x)
    assert [tuple(part.shape) for part in (x_hat, d_real, d_fake, mean, log_var)] == [
        (5, 784),
        (5, 1),
        (5, 1),
        (5, 20),
        (5, 20),
    ]
    for probability in (x_hat, d_real, d_fake):
        assert ((probability > 0) & (probability < 1)).all()
    torch.testing.assert_close(d_real, model.discriminator(x))
    torch.testing.assert_close(d_fake, model.discriminator(x_hat))
    torch.testing.assert_close((mean, log_var), tuple(model.encoder(x)))


def test_the_networks_compute_what_the_listing_says() -> None:
    model, x, z = VAEGAN(12, 7, 3), torch.rand(5, 12), torch.randn(5, 3)

    def linear(name: str, to: Tensor) -> Tensor:
        return to @ model.state_dict()[f"{name}.weight"].T + model.state_dict()[f"{name}.bias"]

    hidden = linear("encoder.fc1", x).clamp(min=0)
    mean, log_var = model.encoder(x)
    torch.testing.assert_close(mean, linear("encoder.fc_mean", hidden))
    torch.testing.assert_close(log_var, linear("encoder.fc_var", hidden))
    decoded = linear("decoder.fc2", linear("decoder.fc1", z).clamp(min=0))
    torch.testing.assert_close(model.decoder(z), 1 / (1 + torch.exp(-decoded)))
    judged = linear("discriminator.fc2", linear("discriminator.fc1", x).clamp(min=0))
    torch.testing.assert_close(model.discriminator(x), 1 / (1 + torch.exp(-judged)))


def test_reparameterize_is_the_mean_plus_noise_in_standard_deviations() -> None:
    mean, log_var, noise = torch.randn(3, 4, 2)
    torch.testing.assert_close(reparameterize(mean, log_var, noise), mean + noise * torch.exp(log_var).sqrt())


def test_reparameterized_codes_have_the_posteriors_mean_and_variance() -> None:
    draws, mean, log_var = 200_000, torch.tensor([-1.0, 2.0]), torch.tensor([-1.5, 0.7])
    z = VAEGAN(4, 4, 2).reparameterize(mean.expand(draws, 2), log_var.expand(draws, 2))
    variance = log_var.exp()
    five_errors_of_the_mean = 5 * (variance / draws).sqrt()
    five_errors_of_the_variance = 5 * variance * (2 / draws) ** 0.5
    assert ((z.mean(0) - mean).abs() < five_errors_of_the_mean).all()
    assert ((z.var(0) - variance).abs() < five_errors_of_the_variance).all()


def estimated(model: VAEGAN, images: Tensor, noise: Noise, objective: config.Objective) -> tuple[float, float]:
    """(L_VAE, L) of the equations, in nats per image, estimated with this noise."""
    with torch.no_grad():
        mean, log_var = model.encoder(images)
        posterior = Normal(mean, torch.exp(log_var / 2))
        z = mean + noise.posterior_BZ * posterior.stddev
        # a grey pixel counts as a coin with that share of heads, as in the article's binary cross-entropy
        coin = Bernoulli(model.decoder(z))
        heads, tails = coin.log_prob(torch.ones_like(images)), coin.log_prob(torch.zeros_like(images))
        likelihood = (images * heads + (1 - images) * tails).flatten(1).sum(1)
        divergence = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum(1)
        l_vae = (-likelihood + objective.beta * divergence).mean()
        d_real, d_fake = model.discriminator(images), model.discriminator(model.decoder(noise.prior_BZ))
        l_gan = d_real.log().mean() + (1 - d_fake).log().mean()
    return float(l_vae), float(l_vae + objective.lambda_ * l_gan)


def test_plain_training_lowers_L_on_digits() -> None:
    images = torch.as_tensor(load_digits().data / 16).view(-1, 1, 8, 8)
    objective = config.Objective(schedule="plain", likelihood=config.Likelihood(kind="bernoulli"))
    networks = config.Networks(family="mlp", latent=8, width=64, norm="none")
    optimizers = config.Optimizers(autoencoder=config.Optimizer(lr=3e-3))
    model = build(networks, objective.likelihood, (1, 8, 8))
    everyone, size = players(model, objective, optimizers), 128
    held = drawn(len(images), (1, 8, 8), 8)[1]
    _, before = estimated(model, images, held, objective)
    for epoch in range(30):
        for rows in torch.randperm(len(images)).split(size):
            batch, noise = drawn(len(rows), (1, 8, 8), 8)
            batch = batch._replace(images=images[rows])
            step(turns(objective), everyone, batch, noise, weights_at(objective, epoch * len(images)))
    l_vae, after = estimated(model, images, held, objective)
    assert after < before
    # a decoder that ignores its code can do no better than each pixel's mean: the code must tell more than that
    best_without_a_code = float(Bernoulli(images.mean(0)).entropy().sum())
    assert l_vae < best_without_a_code - 1
