"""Extractors: a classifier that belongs to its data, the standard Inception or none."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

from pipeline.cli import main
from pipeline.data import manifest as manifests
from pipeline.data.batches import first_columns, first_images
from pipeline.data.pixels import packed
from pipeline.data.prepare import prepare
from pipeline.data.sources import open_source
from pipeline.errors import Mistake
from pipeline.evaluation import classifier, extractors
from pipeline.evaluation.extractors import INCEPTION_FILES, Extractor, open_extractor
from pipeline.evaluation.figures import Evaluator
from pipeline.evaluation.held_out import read
from pipeline.evaluation.observer import Codes
from pipeline.settings import Evaluation


@pytest.fixture(scope="module")
def known(digits: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits with a classifier of theirs; not to be written to."""
    path = tmp_path_factory.mktemp("known") / "digits"
    shutil.copytree(digits, path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(classifier, "IMAGES_SEEN", 6_400)
        classifier.trained(str(path), manifests.load(str(path)), (), progress=False)
    return str(path)


@pytest.fixture
def own(known: str, tmp_path: Path) -> str:
    """A copy to be written to."""
    shutil.copytree(known, tmp_path / "digits")
    return str(tmp_path / "digits")


def opened(data: str, name: str = "classifier") -> Extractor:
    return open_extractor(name, data, manifests.load(data))


def test_a_classifier_says_how_well_it_does_on_images_it_has_not_seen(known):
    card = json.loads((Path(known) / classifier.CARD).read_text())
    assert card["accuracy"][0] > 0.9
    extractor, manifest = opened(known), manifests.load(known)
    images = first_images(known, manifest, "test", 360).float() / 255
    labels_NK = first_columns(known, manifest, "test", ["label"], 360)
    right = extractor.classes(extractor(images)) == labels_NK
    assert float(right.float().mean()) == pytest.approx(card["accuracy"][0], abs=1e-6)


def test_features_of_an_image_do_not_depend_on_what_it_is_batched_with(known):
    extractor = opened(known)
    images = torch.rand(16, 1, 32, 32)
    apart = torch.cat([extractor(images[:5]), extractor(images[5:])])
    torch.testing.assert_close(extractor(images), apart, rtol=1e-4, atol=1e-5)
    assert apart.shape == (16, extractor.features) and apart.dtype == torch.float32


def test_a_classifier_is_trained_once_for_a_digest(own, monkeypatch):
    manifest, card = manifests.load(own), Path(own, classifier.CARD)
    before = card.stat().st_mtime_ns
    classifier.trained(own, manifest, ("label",), progress=False)
    assert card.stat().st_mtime_ns == before
    card.write_text(card.read_text().replace(manifest.digest, "0" * 64))
    with pytest.raises(Mistake, match=r"trained on other data \(000000000000\): train it again with `vaegan features"):
        opened(own)
    monkeypatch.setattr(classifier, "IMAGES_SEEN", 256)
    classifier.trained(own, manifest, (), progress=False)
    assert json.loads(card.read_text())["digest"] == manifest.digest
    assert opened(own).weights == json.loads(card.read_text())["sha256"]


def test_a_classifier_is_the_same_whenever_it_is_trained(own, monkeypatch):
    monkeypatch.setattr(classifier, "IMAGES_SEEN", 512)
    manifest, found = manifests.load(own), []
    for _ in range(2):
        Path(own, classifier.CARD).unlink()
        torch.randn(3)
        found.append(classifier.trained(own, manifest, (), progress=False))
    assert found[0] == found[1]


def test_other_columns_do_not_replace_a_classifier_that_figures_rest_on(own):
    with pytest.raises(Mistake, match="classifies label, not label, label; figures rest on it: remove it"):
        classifier.trained(own, manifests.load(own), ("label", "label"))


@pytest.mark.parametrize("damage", ["cut", "gone", "card"])
def test_a_damaged_classifier_is_refused_in_one_line(own, damage):
    weights = Path(own, classifier.WEIGHTS)
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "gone":
            weights.unlink()
        case "card":
            Path(own, classifier.CARD).write_text('{"digest": 3}')
    with pytest.raises(Mistake, match=r"(missing or damaged|is damaged).*train"):
        opened(own)


def test_several_columns_are_several_heads(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "IMAGES_SEEN", 6_400)
    digits = load_digits()
    field, pixels = packed((digits.images * 15).astype("uint8")[:, None], "image")
    columns = {"parity": digits.target % 2, "large": digits.target >= 5, "caption": digits.target.astype(str)}
    schema = pa.schema([field, *pa.table(columns).schema])
    pq.write_table(pa.table([pixels, *columns.values()], schema=schema), tmp_path / "all.parquet")
    data = str(tmp_path / "data")
    prepare(open_source("parquet", tmp_path / "all.parquet"), "parquet", Path(data), size=16, progress=False)
    with pytest.raises(Mistake, match=r"no column 'label' of whole numbers; name another with --column: parity, large"):
        opened(data)
    card = classifier.trained(data, manifests.load(data), ("parity", "large"), progress=False)
    assert card.classes == (2, 2) and min(card.accuracy) > 0.8
    extractor = opened(data)
    assert extractor.heads == (2, 2)
    assert extractor.classes(extractor(torch.rand(3, 1, 16, 16))).shape == (3, 2)


def test_the_command_trains_and_says_what_came_of_it(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classifier, "IMAGES_SEEN", 256)
    shutil.copytree(digits, tmp_path / "digits")
    data = str(tmp_path / "digits")
    assert main(["features", "train", "--data", data, "--column", "nobody"]) == 2
    assert "there is no column 'nobody' of whole numbers; name another with --column: label" in capsys.readouterr().err
    assert main(["features", "train", "--data", data]) == 0
    assert "classifier of label" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 128, 128), (3, 8, 8)])
def test_a_classifier_takes_images_of_any_size(shape):
    network = classifier.Classifier(shape[0], shape[1], (7, 3)).eval()
    features_BF = network(torch.rand(2, *shape))
    assert features_BF.shape == (2, classifier.FEATURES)
    assert network.classes(features_BF).shape == (2, 2)


def test_without_weights_inception_says_where_it_looked_and_what_runs_without(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    hub = tmp_path / "checkpoints"
    places = [hub / name for name in INCEPTION_FILES]
    with pytest.raises(Mistake, match=f"no weights at {places[0]} or {places[1]}, .*pca64 and classifier run without"):
        opened(digits, "inception")
    hub.mkdir()
    places[1].write_bytes(b"other weights")
    with pytest.raises(Mistake, match=rf"{places[1]} has sha256 \w{{8}}\.\.\., the standard Inception 6726825d"):
        opened(digits, "inception")


def test_inception_sees_what_torchmetrics_does(digits, tmp_path, monkeypatch):
    """With weights of chance: the real ones are on no machine that tests run on."""
    torch.manual_seed(0)
    with monkeypatch.context() as patched:  # the only way to have the network is to have weights for it
        patched.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(NoTrainInceptionV3, "load_state_dict", lambda *_: None)
        chance = NoTrainInceptionV3("chance", ["2048"])
    (tmp_path / "checkpoints").mkdir()
    place = tmp_path / "checkpoints" / INCEPTION_FILES[0]
    torch.save(chance.state_dict(), place)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(place.read_bytes()).hexdigest()[:8])
    extractor = opened(digits, "inception")
    pixels = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    features_BF = extractor(pixels.float() / 255)
    assert features_BF.shape == (3, extractor.features)
    for antialias, same in ((False, True), (True, False)):  # which resizes otherwise
        theirs = NoTrainInceptionV3("standard", ["2048"], str(place), antialias=antialias)
        theirs_BF = theirs(pixels.expand(-1, 3, -1, -1))
        assert torch.allclose(features_BF, theirs_BF, rtol=1e-3, atol=1e-3 * float(theirs_BF.std())) == same


class Port(nn.Module):
    """An extractor as torchmetrics takes it."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor, self.num_features = extractor, extractor.features

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images)


class Shown(nn.Module):
    """A code is the image itself."""

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def decode(self, z_BZ: Tensor) -> Tensor:
        return z_BZ.unflatten(1, (1, 32, 32))


@pytest.mark.parametrize("name", ["pca64", "classifier"])
def test_a_frechet_distance_is_torchmetrics_fid_of_the_same_extractor(known, name):
    extractor, settings = opened(known, name), Evaluation(images=300, samples=300)
    held_out = read(known, manifests.load(known), settings)
    drawn = torch.rand(300, 1, 32, 32, generator=torch.Generator().manual_seed(0)) ** 2
    theirs = FrechetInceptionDistance(Port(extractor)).set_dtype(torch.float64)
    with torch.no_grad():
        theirs.update(held_out.images.float() / 255, real=True)
        theirs.update(drawn, real=False)
    ours = Evaluator(held_out, [extractor], 300).evaluate(Shown(), Codes("noise", drawn.flatten(1)))
    assert ours.figures[f"eval/fd_{name}/samples"] == pytest.approx(float(theirs.compute()), rel=1e-3)
