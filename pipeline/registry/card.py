"""What a person should know of a version of a model, as Markdown."""

from pipeline.evaluation.protocol import Evaluation, beside, how, told
from pipeline.references import Found


def card(name: str, found: Found, evaluation: Evaluation) -> str:
    """Figures beside their floors, how they were measured, and where the model came from."""
    settings, record = found.settings, found.record
    objective, networks = settings.objective, settings.networks
    return f"""# {name}

A VAE-GAN trained on `{record["data"]["source"]}` (sha256 `{record["data"]["digest"][:12]}`), run `{record["name"]}`,
after {found.checkpoint.images_seen:,} images; averaged weights. Signs of trouble in training: \
{", ".join(evaluation.health) or "none"}.

| figure | value | noise | floor |
| --- | --- | --- | --- |
{_figures(evaluation)}

Noise is the standard error over other draws; the floor is the same figure of real images against real ones.

{_protocols(evaluation)}

- networks: {networks.family}, width {networks.width}, latent {networks.latent}
- objective: {objective.schedule}, {objective.likelihood.kind} likelihood on {objective.reconstruction}, \
beta {objective.beta:g}, lambda {objective.lambda_:g}
- command: `{record["tags"].get("vaegan.command", "unknown")}`
- commit: {record["tags"].get("mlflow.source.git.commit", "unknown")}

`predict(x, params={{"task": "sample" | "encode" | "decode" | "reconstruct", "count": 16, "seed": 0}})`: images are
float32 (N, C, H, W) in [0, 1], codes (N, {networks.latent}, 1, 1).
"""


def _figures(evaluation: Evaluation) -> str:
    rows = []
    for name, value in evaluation.figures.items():
        rows.append(f"| {' | '.join([name, f'{value:.4g}', *beside(evaluation.protocols.get(name, {}))])} |")
    return "\n".join(rows)


def _protocols(evaluation: Evaluation) -> str:
    """What is the same for all figures, then what else there is, each said once."""
    hows = [how(protocol) for protocol in evaluation.protocols.values()]
    keys = dict.fromkeys(key for one in hows for key in one)
    values = {key: {one[key] for one in hows if key in one} for key in keys}
    lines = [{key: value for key, (value, *others) in values.items() if not others}]
    for one in hows:
        apart = {key: value for key, value in one.items() if key not in lines[0]}
        if apart not in lines:
            lines.append(apart)
    return "\n".join(f"- measured with {told(line)}" for line in lines if line)
