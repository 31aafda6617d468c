"""What figures are called for people: title, unit, and what a reader should take from it."""

from typing import NamedTuple


class Word(NamedTuple):
    """Of a figure or a term."""

    title: str
    unit: str = ""
    meaning: str = ""


WORDS = {
    "fid": Word("FID", "", "how far the images' distribution is from the real one's, to Inception's eyes"),
    "kid": Word("KID", "", "the same as FID by a kernel, unbiased for few images"),
    "fd": Word("Frechet distance", "", "how far the images' distribution is from the real one's"),
    "kd": Word("kernel distance", "", "the same by a kernel, unbiased for few images"),
    "precision": Word("precision", "", "share of images that look real"),
    "recall": Word("recall", "", "share of real images that the model can make"),
    "density": Word("density", "", "how thickly images lie where real ones do; 1 for real ones"),
    "coverage": Word("coverage", "", "share of real images with a made one near them"),
    "diversity": Word("diversity", "", "how much images vary; 1 for real ones"),
    "spacing": Word(
        "spacing", "", "how far images are from those most like them; 1 for real ones, 0 for repeated ones"
    ),
    "class_coverage": Word("class coverage", "", "1 where classes come in their real shares"),
    "psnr": Word("PSNR", "dB", "closeness of pixels"),
    "ssim": Word("SSIM", "", "closeness of structure; 1 for equal images"),
    "ms_ssim": Word("MS-SSIM", "", "closeness of structure at several scales; 1 for equal images"),
    "lpips": Word("LPIPS", "", "distance to a network's eyes"),
    "nelbo": Word("negative ELBO", "nats", "an upper bound of -log p(x)"),
    "reconstruction_nats": Word("reconstruction", "nats", "-log p(x|z)"),
    "importance_nats": Word("importance-weighted bound", "nats", "a tighter upper bound of -log p(x)"),
    "bits_per_dim": Word("bits per dimension", "bits", "the negative ELBO of a pixel and channel"),
    "active_units": Word("active units", "", "latents that the images move"),
    "aggregate_gap": Word("aggregate-posterior gap", "nats", "how far all codes together are from the prior"),
    "mig": Word("MIG", "", "whether each factor has a latent of its own"),
    "sap": Word("SAP", "", "the same, by how well single latents predict factors"),
    "dci_disentanglement": Word("DCI disentanglement", "", "whether each latent serves one factor"),
    "dci_completeness": Word("DCI completeness", "", "whether each factor is held by one latent"),
    "dci_informativeness": Word("DCI informativeness", "", "how well factors can be read from codes"),
    "factor_vae": Word("FactorVAE score", "", "how often the latent that stays still names the factor"),
    "reconstruction": Word("reconstruction", "nats"),
    "kl": Word("KL", "nats", "what the codes say of the image"),
    "adversarial": Word("adversarial term", "nats"),
    "images_per_s": Word("speed", "images/s"),
}
"""Stems of `eval/<stem>_<extractor>/<of>`, and terms of the loss. Nats are of an image."""


def word(name: str) -> tuple[Word, str]:
    """Of a metric's or a term's name, and the extractor it ends in, if any; an unknown name speaks for itself."""
    stem, _, extractor = name.rpartition("_")
    if name not in WORDS and stem in WORDS:
        return WORDS[stem], extractor
    return WORDS.get(name, Word(name.replace("_", " "))), ""
