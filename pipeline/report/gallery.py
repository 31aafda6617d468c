"""The pictures of a run, inside the page."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.report.markup import Html, section, tag
from pipeline.report.story import Story

CAPTIONS = {
    "samples": "Samples: draws from the prior.",
    "reconstructions": "Reconstructions, each below its original.",
    "interpolations": "Interpolations: from one held-out image to another, straight through the latent space.",
    "traversals": "Traversals: one held-out image, one latent unit a row moved from -3 to 3; the most active first.",
    "units": "What each latent unit says of an image: its KL from the prior in nats, mean over held-out images.",
    "neighbours": "Learnt by heart? The samples closest to a training image, each beside the nearest of the first "
    "evaluation.samples training images.",
}


def gallery(story: Story) -> Html:
    """Samples as the run went on, then everything else of the best checkpoint."""
    pictures = story.pictures
    best = story.evaluated[0].images_seen if story.evaluated else -1
    drawn = []
    if "samples" in pictures:
        moments = _moments(sorted(pictures["samples"]), best)
        over_time = [
            _figure(pictures["samples"][step], f"{', '.join(names)}: {step:,} images")
            for step, names in moments.items()
        ]
        drawn += [tag("p", CAPTIONS["samples"]), tag("div", *over_time, class_="gallery over-time")]
    others = []
    for key, steps in pictures.items():
        if key not in {"samples", "curves"}:
            step = best if best in steps else max(steps)
            others.append(_figure(steps[step], CAPTIONS.get(key, key)))
    return section("Pictures", *drawn, tag("div", *others, class_="gallery") if others else Html())


def _moments(steps: Sequence[int], best: int) -> Mapping[int, list[str]]:
    """First, middle, best and newest of the steps that have a picture: step -> what it is, in order."""
    named = [("first", steps[0]), ("middle", steps[len(steps) // 2]), ("newest", steps[-1])]
    if best in steps:
        named.append(("best", best))
    moments: dict[int, list[str]] = {}
    for name, step in sorted(named, key=lambda one: one[1]):
        moments.setdefault(step, []).append(name)
    return moments


def _figure(path: Path, caption: str) -> Html:
    data = base64.b64encode(path.read_bytes()).decode()
    return tag("figure", tag("img", src=f"data:image/png;base64,{data}", alt=caption), tag("figcaption", caption))
