"""The `vaegan` command: one function a subcommand, heavy imports inside it."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import Failure, Mistake

Command = Callable[[argparse.Namespace], None]

FROM_NOTHING = """\
from nothing to a registered model:
  vaegan data prepare digits --out data/digits
  vaegan tune run tune_configs/digits.yaml
  vaegan register digits-search --name digits
  vaegan sample models:/digits@champion --count 64 --seed 0 --out grid.png

a REF is a run's or a search's name, runs:/ID, a checkpoint's folder, models:/NAME@ALIAS or models:/NAME/VERSION"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0; 2 for a mistake of the caller's, 1 for a run that failed: each one line."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (Mistake, Failure) as error:
        print(f"vaegan: {error}", file=sys.stderr)
        return 2 if isinstance(error, Mistake) else 1
    except KeyboardInterrupt:
        print("vaegan: interrupted", file=sys.stderr)
        return 130
    return 0


def data_prepare(parsed: argparse.Namespace) -> None:
    """Write a data set."""
    from pipeline.data.prepare import prepare
    from pipeline.data.sources import open_source

    source = open_source(parsed.source, parsed.path, parsed.root, parsed.column)
    described = " ".join([parsed.source, *([str(parsed.path)] if parsed.path else [])])
    manifest = prepare(
        source, described, parsed.out, size=parsed.size, workers=parsed.workers, skip_bad=parsed.skip_bad
    )
    splits = ", ".join(f"{manifest.rows(split):,} {split}" for split in manifest.splits)
    skipped = f", {manifest.skipped} unreadable left out" if manifest.skipped else ""
    shape = " x ".join(map(str, manifest.shape))
    print(f"{parsed.out}: {splits} images of {shape}{skipped}; sha256 {manifest.digest[:12]}")


def features_train(parsed: argparse.Namespace) -> None:
    """Train the classifier of a data set."""
    from pipeline.data.manifest import load
    from pipeline.evaluation.classifier import scored_on, trained

    manifest = load(parsed.data)
    card = trained(parsed.data, manifest, parsed.column)
    accuracies = ", ".join(f"{name} {share:.1%}" for name, share in zip(card.columns, card.accuracy, strict=True))
    print(f"{parsed.data}: classifier of {accuracies} on {scored_on(manifest)}; sha256 {card.sha256[:12]}")


def train(parsed: argparse.Namespace) -> None:
    """Train one run."""
    began = time.time()
    from pipeline.settings import load

    settings = load(parsed.settings, parsed.set)
    if parsed.dry_run:
        from pipeline.training.session import dry_run

        dry_run(settings)
        return
    from pipeline.training.session import train_one
    from pipeline.training.start import Start

    train_one(settings, Start(began))


def evaluate(parsed: argparse.Namespace) -> None:
    """Print the figures of a model."""
    from pipeline.evaluation.offline import evaluate_to

    evaluate_to(parsed.ref, parsed.data, parsed.home, parsed.workers, parsed.extractor, parsed.samples, parsed.out)


def tune_run(parsed: argparse.Namespace) -> None:
    """Search, or go on with a search."""
    from pipeline.tuning.session import search_all

    search_all(parsed.config, parsed.set)


def register(parsed: argparse.Namespace) -> None:
    """Register the best checkpoint of a run or search."""
    from pipeline.registry.register import register as register_best

    register_best(parsed.ref, parsed.name, parsed.home)


def sample(parsed: argparse.Namespace) -> None:
    """Draw a picture of samples."""
    from pipeline.sampling import sample_to

    sample_to(parsed.ref, parsed.home, parsed.out, parsed.count, parsed.seed, parsed.data)


def report(parsed: argparse.Namespace) -> None:
    """Write a run's page."""
    from pipeline.report.write import report as write_report

    write_report(parsed.ref, parsed.home, parsed.out, parsed.against)


def profile(parsed: argparse.Namespace) -> None:
    """Measure a step."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch loads: its profiler talks of itself on stderr
    from pipeline.profiling import profile as profile_step

    profile_step(parsed.settings, parsed.set, parsed.steps, parsed.out)


def tracking_sync(parsed: argparse.Namespace) -> None:
    """Send what still waits on disk."""
    from pipeline.tracking import sync

    sync(parsed.home)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vaegan",
        description="Train VAE-GANs on a Ray cluster, search their settings, and register the best in MLflow.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=FROM_NOTHING,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_data(commands)
    _add_features(commands)
    _add_train(commands)
    _add_tune(commands)
    _add_evaluate(commands)
    _add_register(commands)
    _add_sample(commands)
    _add_report(commands)
    _add_profile(commands)
    _add_tracking(commands)
    return parser


def _add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = _group(commands, "data", "prepare data sets")
    command = _command(
        group,
        "prepare",
        data_prepare,
        "turn images from any source into Parquet shards and a manifest",
        """\
vaegan data prepare digits --out data/digits
vaegan data prepare fashion-mnist --root ~/datasets --out data/fashion
vaegan data prepare folder ~/photos --size 64 --workers 8 --skip-bad --out data/photos
vaegan data prepare parquet ~/captioned --column image --out data/captioned""",
    )
    command.add_argument("source", help="digits, mnist, fashion-mnist, cifar10, celeba, ..., folder or parquet")
    command.add_argument("path", nargs="?", type=Path, help="of a folder or parquet source")
    command.add_argument("--out", type=Path, required=True, help="folder to create")
    command.add_argument("--size", type=int, default=32, help="side of the square images in pixels (default: 32)")
    command.add_argument("--workers", type=int, default=0, help="Ray tasks at a time; 0: this process (default)")
    command.add_argument("--root", type=Path, help="where torchvision finds a copy; then nothing is downloaded")
    command.add_argument("--column", help="image column of a parquet source, where it has several")
    command.add_argument("--skip-bad", action="store_true", help="leave unreadable images out, and count them")


def _add_features(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = _group(commands, "features", "what figures are measured on")
    command = _command(
        group,
        "train",
        features_train,
        "train a small classifier of a data set's labels, once; figures are then measured on its features",
        """\
vaegan features train --data data/fashion
vaegan features train --data data/nouns --column head --column body""",
    )
    command.add_argument("--data", required=True, help="a prepared data set; the classifier is kept beside its shards")
    command.add_argument(
        "--column", action="append", default=[], help="what to classify; may be given again (default: label)"
    )


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "train",
        train,
        "train one run; the same command again resumes it",
        """\
vaegan train digits
vaegan train rgb-64 --set data.path=data/photos --set name=photos --set workers.count=4 --set workers.gpus=1
vaegan train my_run.yaml --set objective.beta=2 --dry-run""",
    )
    command.add_argument("settings", metavar="PRESET_OR_YAML", help="a preset's name, or a YAML file")
    _add_set(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print the settings in full, check them against the data, and stop"
    )


def _add_tune(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = _group(commands, "tune", "search settings")
    command = _command(
        group,
        "run",
        tune_run,
        "search settings; the same command again resumes the search",
        """\
vaegan tune run tune_configs/digits.yaml
vaegan tune run tune_configs/fashion_mnist.yaml --set search.trials=32 --set workers.gpus=1""",
    )
    command.add_argument("config", metavar="YAML", help="settings whose leaves may be distributions")
    _add_set(command)


def _add_evaluate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "evaluate",
        evaluate,
        "measure a model, as checkpoints are in training",
        """\
vaegan evaluate digits --data data/digits
vaegan evaluate models:/digits@champion --data data/digits --workers 2 --out digits.json
vaegan evaluate runs/photos/images-000200000 --data data/photos --extractor pca64 --extractor classifier
vaegan evaluate runs/photos/images-000200000 --data data/photos --samples 20000 \\
    --out runs/photos/images-000200000/evaluation.json""",
    )
    command.add_argument("ref", metavar="MODEL_OR_RUN", help="a run, a search, a registered model, or a checkpoint")
    command.add_argument("--data", required=True, help="a prepared data set; figures are of its held-out images")
    command.add_argument("--workers", type=int, default=1, help="processes that share the work (default: this one)")
    command.add_argument(
        "--extractor",
        action="append",
        default=[],
        help="pca64, classifier or inception; may be given again (default: the run's own)",
    )
    command.add_argument("--samples", type=int, help="images to draw (default: as many as the run's own)")
    command.add_argument("--out", type=Path, help="JSON to write: figures, as in a checkpoint's evaluation.json")
    _add_home(command)


def _add_register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "register",
        register,
        "make the best checkpoint a version of a registered model",
        """\
vaegan register digits-search --name digits
vaegan register runs/photos/images-000200000 --name photos""",
    )
    command.add_argument("ref", metavar="REF", help="a run, a search: its best trial, or a checkpoint")
    command.add_argument("--name", required=True, help="of the registered model")
    _add_home(command)


def _add_sample(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "sample",
        sample,
        "draw a picture of samples",
        """\
vaegan sample models:/digits@champion --count 64 --seed 0 --out grid.png
vaegan sample digits --data data/digits --out everything.png""",
    )
    command.add_argument("ref", metavar="REF", help="a run, a search, a checkpoint, or a registered model")
    command.add_argument("--count", type=int, default=64, help="samples (default: 64)")
    command.add_argument("--seed", type=int, default=0, help="of the codes (default: 0)")
    command.add_argument("--out", type=Path, required=True, help="PNG to write")
    command.add_argument("--data", help="a data set: adds reconstructions of held-out images and interpolations")
    _add_home(command)


def _add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "report",
        report,
        "write a run down as one HTML file that opens without a network",
        """\
vaegan report digits
vaegan report digits --against just-a-vae --against models:/digits@champion --out digits.html""",
    )
    command.add_argument("ref", metavar="RUN", help="a run's name or runs:/ID, or a search: its best trial")
    command.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="REF",
        help="a run, a search or a registered model to compare with; may be given again. "
        "The champion of the run's setting `register` is compared with anyway",
    )
    command.add_argument("--out", type=Path, help="HTML to write (default: report.html in the run's folder)")
    _add_home(command)


def _add_profile(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = _command(
        commands,
        "profile",
        profile,
        "show where the time of a training step goes, beside what the device could do",
        """\
vaegan profile digits
vaegan profile larsen --set data.batch=256 --steps 50 --out larsen.json
vaegan profile my_run.yaml --set data.path=data/photos""",
    )
    command.add_argument("settings", metavar="PRESET_OR_YAML", help="a preset's name, or a YAML file")
    _add_set(command)
    command.add_argument("--steps", type=int, help="steps to measure (default: what takes 5 s)")
    command.add_argument(
        "--out", type=Path, default=Path("trace.json"), help="trace to write, for Perfetto (default: trace.json)"
    )


def _add_tracking(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = _group(commands, "tracking", "the tracker")
    command = _command(
        group,
        "sync",
        tracking_sync,
        "send what a tracker that was away has missed, once and only once",
        "vaegan tracking sync",
    )
    _add_home(command)


def _group(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, about: str
) -> "argparse._SubParsersAction[argparse.ArgumentParser]":
    return commands.add_parser(name, help=about, description=about).add_subparsers(required=True, metavar="COMMAND")


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Command,
    about: str,
    examples: str,
) -> argparse.ArgumentParser:
    indented = "\n".join(f"  {line}" for line in examples.splitlines())
    command = commands.add_parser(
        name,
        help=about,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"examples:\n{indented}",
    )
    command.set_defaults(run=run)
    return command


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change one setting, such as objective.beta=0.5; may be given again",
    )


def _add_home(command: argparse.ArgumentParser) -> None:
    command.add_argument("--home", type=Path, default=Path("runs"), help="where runs live (default: runs)")


if __name__ == "__main__":
    sys.exit(main())
