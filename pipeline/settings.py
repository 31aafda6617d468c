"""One frozen, typed, strict tree that describes a run. YAML and `--set a.b=1` parse into it; imports no torch.

Spans of training are counted in images seen. A mistake is one line: the dotted path, the value, the remedy.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import Mistake
from vaegan.config import STRICT, Networks, Objective, Optimizer, Optimizers, require, yaml_name

Tree = dict[str, object]
"""A parsed YAML file."""

Extractor = Literal["pca64", "classifier", "inception"]
EXTRACTORS: tuple[Extractor, ...] = get_args(Extractor)

QUALITIES = ("fd", "kd", "precision", "recall", "density", "coverage")
"""Of the figures that compare two sets of images by an extractor's features, those that can be said to be better."""
SIMILARITIES = ("psnr", "ssim", "ms_ssim", "lpips")
RECONSTRUCTION = "eval/psnr/reconstructions"
"""The figure of reconstructions that is asked for and shown beside `checkpoints.metric`."""
NATS = ("nelbo", "reconstruction_nats", "importance_nats", "bits_per_dim")
FACTORS = ("mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap", "factor_vae")
LOWER = frozenset({"fd", "kd", "fid", "kid", "lpips", "kl", "aggregate_gap", *NATS})
"""What is better lower; all else is better higher."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on, and in what order."""

    __pydantic_config__ = STRICT

    path: str = "data/digits"
    """A prepared data set: a folder, or a URI of any filesystem pyarrow knows."""
    batch: int = 128
    """Images of a global batch: every allowed number of workers must divide it."""
    window: int = 16_384
    """Rows shuffled together, across shards; what a streaming worker holds."""
    budget_mb: int = 4_096
    """Memory a worker may spend on images: a set that fits is held whole, a larger one is streamed."""
    flip: bool = False
    """Mirror half of the images, other ones every time: twice the data where left and right don't matter."""

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "a number of images >= 1")
        require(self.window >= 1, "window", self.window, "a number of rows >= 1")
        require(self.budget_mb >= 1, "budget_mb", self.budget_mb, "megabytes >= 1")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When training ends: whichever comes first."""

    __pydantic_config__ = STRICT

    images: int = 2_000_000
    """Images seen, all epochs together."""
    patience: int | None = None
    """Evaluations in a row without a better `checkpoints.metric`."""
    minutes: float | None = None
    """Spent in training, resumed parts included; evaluations and start-up apart."""

    def __post_init__(self) -> None:
        require(self.images >= 1, "images", self.images, "a number of images >= 1")
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "evaluations >= 1, or null")
        require(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "minutes > 0, or null")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """How often a run is evaluated and saved, and what is kept."""

    __pydantic_config__ = STRICT

    every: int = 100_000
    """Images between checkpoints."""
    num_to_keep: int = 2
    """The best so many, the newest, and with `health.mode=act` one from before whatever may be coming on."""
    metric: str = "eval/fd_pca64/samples"
    """What "best" means: a figure of `evaluation` that does not depend on beta or lambda, as a loss would."""

    def __post_init__(self) -> None:
        require(self.every >= 1, "every", self.every, "a number of images >= 1")
        require(self.num_to_keep >= 1, "num_to_keep", self.num_to_keep, "a whole number >= 1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a checkpoint is measured against."""

    __pydantic_config__ = STRICT

    split: str = "test"
    images: int = 10_000
    """Held-out images, the first so many."""
    samples: int = 10_000
    """Images drawn from the prior."""
    extractors: tuple[Extractor, ...] = ("pca64",)
    """What gives the features that sets of images are compared by. classifier: of `vaegan features train`. inception:
    the standard one, where its weights are on the machine."""
    inception: str | None = None
    """Its file of weights, where that is not in torch's own folder."""

    def __post_init__(self) -> None:
        require(self.images >= 3, "images", self.images, "a number of images >= 3")
        require(self.samples >= 3, "samples", self.samples, "a number of images >= 3")
        each_once = 0 < len(self.extractors) == len(set(self.extractors))
        require(each_once, "extractors", list(self.extractors), f"some of {', '.join(EXTRACTORS)}, each once")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a checkpoint must show to become champion of a registered model."""

    __pydantic_config__ = STRICT

    samples: int = 1_000
    """Fewest images that `checkpoints.metric` is measured on. N images make a Frechet distance of F features too large
    by about F / 4N of their variance, and less so for a model that varies less: N = 10 F keeps that below 3 %."""
    images: int = 300
    """Fewest held-out images that it is measured against. They bias a distance as samples do, 300 that of 64 features
    by 5 %; but candidate and champion alike, who have to be measured against the same ones."""
    noises: float = 3.0
    """How many times its own noise the difference to the champion must exceed. Of equals, 3 promotes one in 300; one in
    20, where the candidate is the luckiest of 20 checkpoints and the champion had no such choice."""
    psnr_loss: float = 1.0
    """Decibels by which reconstructions may be worse than the champion's."""

    def __post_init__(self) -> None:
        require(self.samples >= 1, "samples", self.samples, "a number of images >= 1")
        require(self.images >= 1, "images", self.images, "a number of images >= 1")
        require(self.noises >= 0, "noises", self.noises, "a number >= 0")
        require(self.psnr_loss >= 0, "psnr_loss", self.psnr_loss, "decibels >= 0")


@dataclass(frozen=True, kw_only=True)
class Health:
    """What counts as trouble, and what is done about it; `pipeline.training.health` says what each sign means.

    A sign shows when its readings have been beyond its threshold for some time; a number that is not finite, at once.
    """

    __pydantic_config__ = STRICT

    mode: Literal["warn", "stop", "act"] = "warn"
    """warn: it is said, once, and training goes on as long as numbers are finite. stop: the run ends. act: what can be
    done is done, and said: the discriminator rests and is under a stricter penalty, or the run is set back to its last
    good checkpoint with a lower rate, three times at most."""
    patience: int = 30_000
    """Images for which a sign must have been bad: what young networks go through is no illness."""
    hold: int = 10_000
    """Images for which the discriminator rests."""
    posterior_collapse: float = 0.01
    """KL of a latent unit in nats, mean over units: bad below."""
    active_units: float = 0.05
    """Share of latent units that tell images apart, in evaluations: bad below."""
    mode_collapse: float = 0.3
    """In evaluations, diversity or spacing of samples as a part of that of reconstructions, or class coverage: bad
    below."""
    discriminator_saturation: float = 0.01
    """Mean loss of the discriminator in nats, 0.69 where it can't tell real from generated: bad below."""
    discriminator_blindness: float = 0.003
    """What that loss is below the 0.69 nats of a coin: bad below."""
    logit_gap: float = 50.0
    """Between the discriminator's mean logits on real and on generated images, either way: bad above."""
    gradient_vanishing: float = 1e-3
    """Norm of the gradient of the discriminator or, where it has a turn of its own, of the generator: bad below."""
    gradient_explosion: float = 1e6
    """Norm of any player's gradient, the largest: bad above."""

    def __post_init__(self) -> None:
        require(self.patience >= 0, "patience", self.patience, "a number of images >= 0")
        require(self.hold >= 1, "hold", self.hold, "a number of images >= 1")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work: Ray Train workers, one rank each."""

    __pydantic_config__ = STRICT

    count: int | str = 1
    """A number, or 'min..max' for a group that grows and shrinks with the cluster."""
    cpus: float = 1.0
    """Of one worker; it computes with so many threads, at least one."""
    gpus: float = 0.0
    """Of one worker, 0 or 1 as a rule."""
    wait_s: float = 60.0
    """How long to wait for a cluster that can hold the workers before giving up."""
    max_failures: int = 3
    """Restarts from the last checkpoint after a lost worker."""

    def __post_init__(self) -> None:
        try:
            fewest, most = self.range
        except ValueError:
            fewest, most = 0, 0
        require(1 <= fewest <= most, "count", self.count, "a number >= 1, or 'min..max'")
        require(self.cpus > 0, "cpus", self.cpus, "a number > 0")
        require(self.gpus >= 0, "gpus", self.gpus, "a number >= 0")
        require(self.wait_s >= 0, "wait_s", self.wait_s, "seconds >= 0")
        require(self.max_failures >= 0, "max_failures", self.max_failures, "a whole number >= 0")

    @property
    def range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        fewest, dots, most = str(self.count).partition("..")
        return int(fewest), int(most if dots else fewest)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How steps are computed: what is fast is chosen for the device, what trades one thing for another is here."""

    __pydantic_config__ = STRICT

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of what passes between layers; losses, weights and evaluations are float32. auto: bf16 where the device's matrix
    products are much faster in it. Decided once a run."""
    accumulate: int = 1
    """Parts that a worker takes its share of a batch in, one after the other: less memory, somewhat more time."""
    recompute: bool = False
    """Activation checkpointing: keep what goes into each layer, compute the rest again in the backward. Less memory for
    large images, about a third more time."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """What workers send each other: bf16 halves the bytes, for slow networks, and rounds."""

    def __post_init__(self) -> None:
        require(self.accumulate >= 1, "accumulate", self.accumulate, "a whole number >= 1")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where MLflow is."""

    __pydantic_config__ = STRICT

    uri: str | None = None
    """A server, or a database; without it MLFLOW_TRACKING_URI, and without that sqlite under the home."""
    experiment: str = "vaegan"
    offline: bool = False
    """Record here only, for `vaegan tracking sync` to send later."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A run."""

    __pydantic_config__ = STRICT

    name: str
    """The run's folder under the home, and the key that resumes it."""
    home: str = "runs"
    """Where runs live; shared by all hosts of a cluster."""
    seed: int = 0
    register: str | None = None
    """Registered model that the best checkpoint becomes a version of when training ends."""
    log_every: int = 5_000
    """Images between points of the training curves."""
    average_half_life: int = 20_000
    """Of the moving average of the weights, in images, and a tenth of those seen at most; 0: no averaging."""
    data: Data = field(default_factory=Data)
    networks: Networks = field(default_factory=Networks)
    objective: Objective = field(default_factory=Objective)
    optimizers: Optimizers = field(default_factory=Optimizers)
    stop: Stop = field(default_factory=Stop)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    evaluation: Evaluation = field(default_factory=Evaluation)
    decision: Decision = field(default_factory=Decision)
    health: Health = field(default_factory=Health)
    workers: Workers = field(default_factory=Workers)
    compute: Compute = field(default_factory=Compute)
    tracking: Tracking = field(default_factory=Tracking)

    def __post_init__(self) -> None:
        require("://" not in self.home, "home", self.home, "a folder, on storage that all hosts share")
        require(
            self.register is None or is_model_name(self.register),
            "register",
            self.register,
            "a name without / : ' and \"",
        )
        plain_name = self.name not in {"", ".", ".."} and "/" not in self.name and "\\" not in self.name
        require(plain_name, "name", self.name, "a name without slashes")
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        require(self.log_every >= 1, "log_every", self.log_every, "a number of images >= 1")
        require(self.average_half_life >= 0, "average_half_life", self.average_half_life, "a number of images >= 0")
        if self.objective.schedule == "joint" and self.optimizers.generator != Optimizer():
            raise ValueError("optimizers.generator has no effect with objective.schedule joint; leave it out")
        if self.compute.recompute and self.networks.family == "mlp":
            raise ValueError("compute.recompute has no effect with networks.family mlp; leave it out")
        self._require_metric()
        fewest, most = self.workers.range
        for count in range(fewest, most + 1):
            if self.data.batch % count:
                raise ValueError(
                    f"data.batch is {self.data.batch} and workers.count is {self.workers.count!r}: {count} workers "
                    f"can't share {self.data.batch} images evenly; choose a batch that {count} divides"
                )
            share = self.data.batch // count
            if share % self.compute.accumulate:
                raise ValueError(
                    f"compute.accumulate is {self.compute.accumulate}: a worker's share of {share} images can't be "
                    "taken in so many equal parts; choose a number that divides it"
                )

    def _require_metric(self) -> None:
        metric, extractors = self.checkpoints.metric, self.evaluation.extractors
        likelihood = self.objective.likelihood.kind
        given = rankable(extractors, likelihood)
        if metric in given:
            return
        if metric in rankable(EXTRACTORS, likelihood):
            remedy = f"evaluation.extractors are {', '.join(extractors)}; add the one it is measured with"
        else:
            nearest = difflib.get_close_matches(metric, given, n=1, cutoff=0)
            remedy = f"no figure that checkpoints can be ranked by; did you mean {nearest[0]}?"
        raise ValueError(f"checkpoints.metric is {metric!r}: {remedy}")


ADAPTER = TypeAdapter(Settings)


def set_figure(kind: str, extractor: str, of: str) -> str:
    """The name of a figure that compares two sets: only the standard Inception's distances are called FID and KID."""
    standard = {"fd": "fid", "kd": "kid"} if extractor == "inception" else {}
    return f"eval/{standard.get(kind, f'{kind}_{extractor}')}/{of}"


def better(figure: str) -> Literal["min", "max"]:
    """Which way a figure of an evaluation is better."""
    stem = figure.split("/")[1]
    for extractor in EXTRACTORS:
        stem = stem.removesuffix(f"_{extractor}")
    return "min" if stem in LOWER else "max"


def rankable(extractors: Sequence[str], likelihood: str) -> list[str]:
    """Figures that checkpoints can be ranked by: those of quality that these extractors and this likelihood give.

    Those of factors are none: their noise is not known, so that none would replace a champion.
    """
    samples = [set_figure(kind, extractor, "samples") for extractor in extractors for kind in QUALITIES]
    if "classifier" in extractors:
        samples.append("eval/class_coverage/samples")
    shown = [set_figure(kind, extractor, "reconstructions") for extractor in extractors for kind in QUALITIES]
    shown += [f"eval/{kind}/reconstructions" for kind in SIMILARITIES]
    nats = [f"eval/{kind}/images" for kind in NATS if kind != "bits_per_dim" or likelihood == "gaussian"]
    return [*samples, *shown, *nats]


def is_model_name(name: str) -> bool:
    """Whether MLflow takes it for a registered model, and in its filters too."""
    return bool(name) and not set(name) & set("/:'\"")


def load(source: str, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a preset's name or a YAML file, with `a.b=1` overrides. Raises Mistake."""
    return parse(read_tree(source, overrides))


def read_tree(source: str, overrides: Sequence[str] = ()) -> Tree:
    """The tree of a preset or a file: what it names under `preset` is filled in below it, `name` is its stem."""
    tree = {"name": Path(source).stem} | _read(source)
    for override in overrides:
        dotted, equals, value = override.partition("=")
        if not equals:
            raise Mistake(f"--set {override!r}: expected path=value, such as objective.beta=0.5")
        tree = merge(tree, _nested(dotted.strip(), _yaml(value, f"--set {override}")))
    return tree


def parse(tree: Mapping[str, object]) -> Settings:
    """Validate a tree. Raises Mistake for the first thing that is wrong."""
    try:
        return ADAPTER.validate_json(json.dumps(tree))
    except ValidationError as error:
        raise Mistake(explain(error.errors()[0])) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Mistake(f"settings hold something YAML should not: {error}") from None


def dump(settings: Settings) -> Tree:
    """The plain tree of settings; `parse` gives them back."""
    return ADAPTER.dump_python(settings, mode="json", by_alias=True)


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted path -> leaf."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def merge(base: Tree, above: Mapping[str, object]) -> Tree:
    """`above` laid over `base`, section by section."""
    merged = dict(base)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, dict) and isinstance(value, Mapping) else value
    return merged


def presets() -> list[str]:
    """Names of the presets."""
    return sorted(file.name.removesuffix(".yaml") for file in (files("pipeline") / "presets").iterdir())


def identity(settings: Settings, data_digest: str) -> dict[str, object]:
    """What makes a run this run and no other, by dotted path; not workers, stop rule, intervals or tracking.

    How it is evaluated belongs to it: figures of one run must be comparable.
    """
    tree = dump(settings)
    kept = {
        key: tree[key] for key in ("networks", "objective", "optimizers", "seed", "average_half_life", "evaluation")
    }
    kept["checkpoints"] = {"metric": settings.checkpoints.metric}
    data = {key: getattr(settings.data, key) for key in ("batch", "window", "flip")} | {"digest": data_digest}
    compute = {key: getattr(settings.compute, key) for key in ("precision", "gradients")}
    return flatten(kept | {"data": data, "compute": compute})


def identity_hash(identity: Mapping[str, object]) -> str:
    """A short name of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def explain(error: ErrorDetails, section: type = Settings, prefix: str = "") -> str:
    """What is wrong with a setting, in one line. section: the class that was validated, found under `prefix`."""
    parts = [part for part in error["loc"] if part not in {"int", "str"}]  # pydantic names the branch of a union too
    place = ".".join(str(part) for part in ([prefix] if prefix else []) + parts)
    value = error["input"]
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{place}.{message}" if place else message
    if error["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        known = _paths(section, prefix and f"{prefix}.")
        elsewhere = [path for path in known if path.rpartition(".")[2] == parts[-1]]
        cutoff = 0.0 if elsewhere else 0.5
        nearest = difflib.get_close_matches(place, elsewhere or known, n=1, cutoff=cutoff)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"{place} is not a setting (its value was {json.dumps(value)}){hint}"
    if error["type"] in {"missing", "missing_argument"}:
        return f"{place} is missing"
    expected = error["msg"].removeprefix("Input should be ")
    return f"{place} is {json.dumps(value)}; expected {expected}"


def _read(source: str) -> Tree:
    if not source.endswith((".yaml", ".yml")):
        return _read_preset(source)
    try:
        text = Path(source).read_text()
    except UnicodeDecodeError:
        raise Mistake(f"{source}: not text in UTF-8") from None
    except OSError as error:
        raise Mistake(f"{source}: {error.strerror or error}; presets are {', '.join(presets())}") from None
    return _built(_section(_yaml(text, source), source))


def _read_preset(name: str) -> Tree:
    if name not in presets():
        nearest = difflib.get_close_matches(name, presets(), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        raise Mistake(f"{name!r} is neither a YAML file nor a preset{hint} presets are {', '.join(presets())}")
    return _built(_section(_yaml((files("pipeline") / "presets" / f"{name}.yaml").read_text(), name), name))


def _built(tree: Tree) -> Tree:
    """On the preset that it names, which may be built on another."""
    base = tree.pop("preset", None)
    return tree if base is None else merge(_read_preset(str(base)), tree)


def _section(value: object, place: str) -> Tree:
    if not isinstance(value, dict):
        raise Mistake(f"{place}: expected settings by name, such as `seed: 1`, not {value!r}")
    return value


def _yaml(text: str, place: str) -> object:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise Mistake(f"{place}: not YAML: {' '.join(str(error).split())}") from None


def _nested(dotted: str, value: object) -> Tree:
    head, _, rest = dotted.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _paths(section: type, prefix: str = "") -> list[str]:
    hints = get_type_hints(section)
    found = []
    for part in fields(section):
        found.append(f"{prefix}{yaml_name(part.name)}")
        for kind in (hints[part.name], *get_args(hints[part.name])):
            if is_dataclass(kind) and isinstance(kind, type):
                found += _paths(kind, f"{found[-1]}.")
    return found
