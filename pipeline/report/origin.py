"""Where a run came from: settings, lineage, and what was noted on the way."""

from collections.abc import Sequence

from pipeline.report.figures import Side
from pipeline.report.markup import Html, date, fold, section, tabled, tag, together
from pipeline.report.story import Story
from pipeline.settings import Settings, dump, flatten


def settings_section(story: Story, sides: Sequence[Side]) -> Html:
    """What differs from the defaults or from the runs compared with; then all."""
    own, default = flatten(dump(story.settings)), flatten(dump(Settings(name=story.settings.name)))
    others = [side for side in sides[1:] if side.settings]
    heads = ["setting", "this run", "unless set", *(side.label for side in others)]
    rows = {
        path: [value, default.get(path), *(side.settings.get(path) for side in others)]
        for path, value in own.items()
        if path not in {"name", "home"}
    }
    differing = {path: values for path, values in rows.items() if any(value != values[0] for value in values)}
    return section(
        "Settings",
        tag("p", "What differs from the defaults" + (" or between these runs." if others else ".")),
        tabled(heads, [_setting(path, values) for path, values in differing.items()]),
        fold("All settings", tabled(heads[:2], [_setting(path, values[:1]) for path, values in rows.items()])),
    )


def _setting(path: str, values: Sequence[object]) -> list[str]:
    """A row; a value that is this run's again is faint."""
    own, *others = map(shown, values)
    return [tag("code", path), own, *(tag("span", one, class_="faint") if one == own else one for one in others)]


def shown(value: object) -> str:
    """A setting's value."""
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def lineage_section(story: Story) -> Html:
    """Command, commit, data, workers, versions."""
    record = story.record
    tags = dict(record["tags"])
    commit = tags.pop("mlflow.source.git.commit", "unknown")
    dirty = ", with files changed" if tags.pop("vaegan.git_dirty", "") == "true" else ""
    workers = [str(event.body["text"]) for event in story.of_kind("note") if " workers, " in str(event.body["text"])]
    facts = {
        "command": tags.pop("vaegan.command", "unknown"),
        "commit": commit + dirty,
        "data": f"{record['data']['source']} at {record['data']['path']}, sha256 {record['data']['digest']}",
        "workers": "; ".join(workers),
        "checkpoints kept": ", ".join(f"{checkpoint.images_seen:,}" for checkpoint in story.kept) or "none",
        "tracker": record["tracking_uri"],
        "key": record["key"],
    } | {name.removeprefix("vaegan.").removeprefix("version."): value for name, value in tags.items()}
    pairs = [together(tag("dt", name), tag("dd", value)) for name, value in facts.items() if value]
    return section("Lineage", tag("dl", *pairs))


def notes_section(story: Story) -> Html:
    """What was noted on the way."""
    rows = [
        [date(event.time_ms), f"{event.step:,}", event.kind, ": ".join(map(str, event.body.values()))]
        for event in story.of_kind("note", "warning", "status")
    ]
    return section("Notes", fold(f"{len(rows)} notes", tabled(["when", "images seen", "", ""], rows)))
