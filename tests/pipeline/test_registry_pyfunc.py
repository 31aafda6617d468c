"""What is registered runs where this repository is not, unpickles nothing, and is champion only if it is better."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pipeline.errors import Mistake
from pipeline.training import checkpoints
from tests.pipeline.small import FD, evaluation, record, run, tiny

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]

PREDICT = """
import json, sys
from pathlib import Path

root, uri, out = sys.argv[1:]
# as on a machine that has only what the model asks for: the editable install of this repository is taken away
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path[:] = [place for place in sys.path if "editable" not in place and Path(place).resolve() != Path(root)]
try:
    import vaegan
    raise SystemExit(f"vaegan is still here: {vaegan.__file__}")
except ModuleNotFoundError:
    pass

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from safetensors.numpy import save_file

mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/digits@champion")
images = np.random.default_rng(0).random((3, 1, 32, 32), dtype=np.float32)
codes = model.predict(images, params={"task": "encode"})
arrays = {
    "images": images,
    "codes": codes,
    "decoded": model.predict(codes, params={"task": "decode"}),
    "reconstructed": model.predict(images, params={"task": "reconstruct"}),
    "default": model.predict(images),
    "sampled": model.predict(images, params={"task": "sample", "count": 5, "seed": 7}),
}
complaints = []
for task, given in (("paint", images), ("encode", images[..., :16]), ("decode", images), ("encode", images[:0])):
    try:
        answer = model.predict(given, params={"task": task})
        complaints.append(f"{task}: {answer.shape}")
    except Exception as error:
        complaints.append(f"{type(error).__name__}: {error}")
save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, out)
loaded = sys.modules["vaegan"].__file__
told = {"vaegan": loaded, "complaints": complaints, "pipeline": "pipeline" in sys.modules, "ray": "ray" in sys.modules}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def home(digits: str, tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A run, registered, with figures that no training had to bring about."""
    from pipeline.registry.register import register

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    (home / "mlflow.db").write_bytes(empty_store.read_bytes())
    settings = tiny(digits, home, {"name": "good", "stop.images": 640, "checkpoints.every": 320})
    record(settings, uri=uri_of(home))
    trained = run(settings)
    assert trained.ending.kind == "finished"
    for seen, fd in zip(trained.kept, (1.5, 2.5), strict=True):
        checkpoints.write_evaluation(
            trained.directory / f"images-{seen:09d}", evaluation(fd, noise=0.1, floor=0.2, floor_samples=1_440)
        )
    register("good", "digits", home)
    return home


def uri_of(home: Path) -> str:
    return f"sqlite:///{home}/mlflow.db"


def versions(home: Path, name: str = "digits") -> dict[str, str]:
    """Version -> the run it is of."""
    from mlflow import MlflowClient

    found = MlflowClient(uri_of(home)).search_model_versions(f"name = '{name}'")
    return {str(one.version): Path(one.tags["vaegan.run"]).name for one in found}


@pytest.fixture(scope="module")
def abroad(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """What a process says that has mlflow and torch but neither this repository nor leave to unpickle."""
    folder = tmp_path_factory.mktemp("abroad")
    out = folder / "answers.safetensors"
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "MLFLOW_TRACKING_URI"}}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PREDICT, str(ROOT), uri_of(home), str(out)],
        cwd=folder,
        env=clean | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1]), load_file(out)


def test_the_package_travels_with_the_model(home, abroad):
    told, _ = abroad
    assert (told["pipeline"], told["ray"]) == (False, False)
    loaded = Path(str(told["vaegan"]))
    assert loaded.parent != ROOT / "vaegan"
    assert loaded.parts[-3:] == ("code", "vaegan", "__init__.py")


def test_all_four_tasks_answer_as_the_averaged_model_does(home, abroad):
    _, answers = abroad
    best = checkpoints.ranked(checkpoints.listed(home / "good"), FD)[0]
    autoencoder, _ = checkpoints.load_average(best.path)
    images = torch.from_numpy(answers["images"])
    with torch.no_grad():
        codes, shown = autoencoder.encode(images), autoencoder.reconstruct(images)
        drawn = autoencoder.sample(5, torch.Generator().manual_seed(7))
    near = {"rtol": 1e-4, "atol": 1e-5}
    assert answers["codes"].shape == (3, 4, 1, 1)
    np.testing.assert_allclose(answers["codes"][:, :, 0, 0], codes, **near)
    np.testing.assert_allclose(answers["reconstructed"], shown, **near)
    np.testing.assert_allclose(answers["decoded"], shown, **near)
    np.testing.assert_allclose(answers["default"], shown, **near)
    np.testing.assert_allclose(answers["sampled"], drawn, **near)
    assert answers["sampled"].shape == (5, 1, 32, 32)
    assert all(array.dtype == np.float32 for array in answers.values())


def test_a_request_that_makes_no_sense_is_told_what_would(abroad):
    told, _ = abroad
    complaints = told["complaints"]
    assert isinstance(complaints, list)
    unknown, small, no_codes, nothing = complaints
    assert "params.task is 'paint'; expected sample, encode, decode or reconstruct" in unknown
    assert "the input has shape (3, 1, 32, 16); expected images (N, 1, 32, 32)" in small
    assert "the input has shape (3, 1, 32, 32); expected codes (N, 4, 1, 1)" in no_codes
    assert nothing == "encode: (0, 4, 1, 1)"


def test_no_file_of_the_model_is_a_pickle(home):
    from mlflow.artifacts import download_artifacts

    folder = Path(download_artifacts("models:/digits@champion", tracking_uri=uri_of(home)))
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert {"average.safetensors", "description.json", "README.md", "pyfunc.py"} <= {file.name for file in files}
    assert {file.suffix for file in files if file.name not in {"MLmodel", "registered_model_meta"}} <= {
        ".safetensors",
        ".json",
        ".md",
        ".py",
        ".yaml",
        ".txt",
    }
    assert not any(file.read_bytes()[:1] == b"\x80" for file in files)


def test_a_version_carries_its_lineage(home):
    from mlflow import MlflowClient

    from pipeline.tracking import run_id

    version = MlflowClient(uri_of(home)).get_model_version_by_alias("digits", "champion")
    best = checkpoints.ranked(checkpoints.listed(home / "good"), FD)[0]
    assert version.run_id == run_id(home / "good")
    assert version.tags["vaegan.checkpoint_sha256"] == checkpoints.digest(best.path)
    assert version.tags["vaegan.images_seen"] == str(best.images_seen)
    for name, figure in best.figures.items():
        assert float(version.tags[name]) == figure
        assert f"| {name} | {figure:.4g} | 0.1 | 0.2 of 1,440 images |" in str(version.description)
    assert str(version.description).count("split test") == 1, "what all figures share is said once"


def test_the_champion_loads_in_this_process_too(home):
    from pipeline.registry.load import load

    best = checkpoints.ranked(checkpoints.listed(home / "good"), FD)[0]
    expected = checkpoints.load_average(best.path)[0].state_dict()
    autoencoder, shape = load("models:/digits@champion", home)
    loaded = autoencoder.state_dict()
    assert shape == (1, 32, 32)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


@pytest.mark.parametrize("ref", ["models:/digits@nobody", "models:/digits/99", "models:/nothing@champion"])
def test_a_model_that_is_not_there_is_one_line(home, ref):
    from pipeline.registry.load import load

    with pytest.raises(Mistake) as caught:
        load(ref, home)
    assert str(caught.value).startswith(f"{ref}: ")
    assert "\n" not in str(caught.value)


def test_a_damaged_model_is_not_loaded(home):
    from mlflow import MlflowClient

    from pipeline.registry.load import load
    from pipeline.registry.register import register

    register("good", "hurt", home)
    version = MlflowClient(uri_of(home)).get_model_version("hurt", "1")
    model = version.source.rpartition("/")[2]
    (weights,) = (home / "mlflow-artifacts").rglob(f"{model}/**/average.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(Mistake, match=r"^models:/hurt/1: the weights are damaged"):
        load("models:/hurt/1", home)


def test_a_model_of_somebody_elses_is_not_run(home, tmp_path):
    import mlflow

    from pipeline.registry.load import load

    code = tmp_path / "theirs.py"
    code.write_text("import mlflow\nmlflow.models.set_model(lambda model_input: model_input)\n")
    mlflow.set_tracking_uri(uri_of(home))
    ours = mlflow.get_experiment_by_name("vaegan")
    assert ours is not None
    with mlflow.start_run(experiment_id=ours.experiment_id):  # the default one keeps its files in the working folder
        mlflow.pyfunc.log_model(
            name="model", python_model=str(code), registered_model_name="theirs", pip_requirements=[]
        )
    with pytest.raises(Mistake, match=r"^models:/theirs/1 is not a model of ours"):
        load("models:/theirs/1", home)


@pytest.mark.parametrize(("ref", "name"), [("good", ""), ("good", "a/b"), ("good", "a:b"), ("models:/a/1", "a")])
def test_what_cannot_be_registered_is_refused_before_anything_is_made(home, ref, name):
    from pipeline.registry.register import register

    with pytest.raises(Mistake):
        register(ref, name, home)


def test_a_damaged_checkpoint_is_not_registered(home, digits):
    from pipeline.registry.register import register

    settings = tiny(digits, home, {"name": "damaged"})
    record(settings, uri=uri_of(home))
    run(settings)
    for kept in checkpoints.listed(home / "damaged"):
        path = kept.path / "average.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        checkpoints.write_evaluation(kept.path, evaluation(1.0))
    with pytest.raises(Mistake, match=r"average\.safetensors is damaged"):
        register("damaged", "other", home)
    assert versions(home, "other") == {}
