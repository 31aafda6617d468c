"""A run's folder survives a kill at any moment: no event is glued or doubled, and no run takes another's place."""

import json
import os

import pytest

from pipeline.errors import Mistake
from pipeline.rundir import (
    JOURNAL,
    RUN,
    Journal,
    ended,
    open_record,
    read_journal,
    read_record,
    require_same_identity,
    run_directories,
    write_atomically,
)
from tests.pipeline.small import events, points, record, tiny


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path)


def test_events_come_back_as_they_were_written(tmp_path, journal):
    journal.metrics(64, {"train/a": 1.5, "train/b": 2})
    journal.picture(64, "samples", tmp_path / "pictures" / "samples.png")
    journal.note(64, "warning", "a line\nand another")
    assert [(event.step, event.kind, event.body) for event in events(tmp_path)] == [
        (64, "metrics", {"train/a": 1.5, "train/b": 2}),
        (64, "picture", {"key": "samples", "path": "pictures/samples.png"}),
        (64, "warning", {"text": "a line\nand another"}),
    ]
    times = [event.time_ms for event in events(tmp_path)]
    assert times == sorted(times)
    assert times[0] > 1_600_000_000_000


def test_nothing_is_written_for_no_values(tmp_path, journal):
    journal.metrics(64, {})
    assert not (tmp_path / JOURNAL).exists()


def test_a_reader_goes_on_from_any_events_offset(tmp_path, journal):
    for step in range(5):
        journal.metrics(step, {"a": step})
    seen = list(read_journal(tmp_path, 0))
    for number, (_, offset) in enumerate(seen):
        assert list(read_journal(tmp_path, offset)) == seen[number + 1 :]
    assert seen[-1][1] == (tmp_path / JOURNAL).stat().st_size


def test_a_line_still_being_written_is_left_for_later(tmp_path, journal):
    journal.metrics(1, {"a": 1})
    path, whole = tmp_path / JOURNAL, (tmp_path / JOURNAL).read_bytes()
    path.write_bytes(whole + whole[:-1])
    ((_, offset),) = read_journal(tmp_path, 0)
    assert offset == len(whole)
    path.write_bytes(whole + whole)
    assert len(list(read_journal(tmp_path, offset))) == 1


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_a_torn_last_line_is_dropped_and_nothing_is_glued_to_it(tmp_path, journal, kept):
    journal.metrics(1, {"a": 1})
    journal.metrics(2, {"a": 2})
    path = tmp_path / JOURNAL
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:kept])
    Journal(tmp_path).metrics(2, {"a": 3})
    assert [(event.step, event.body) for event in events(tmp_path)] == [(1, {"a": 1}), (2, {"a": 3})]


def test_a_journal_that_is_only_a_torn_line_starts_again(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"[17")
    Journal(tmp_path).metrics(1, {"a": 1})
    assert points(tmp_path) == [("a", 1)]


@pytest.mark.parametrize("line", [b"\0\0\0\n", b"{\n", b"\xff\n", b"7\n", b"[1, 2]\n", b"null\n"])
def test_a_line_damaged_on_disk_is_lost_alone(tmp_path, journal, line):
    journal.metrics(1, {"a": 1})
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes() + line)
    Journal(tmp_path).metrics(2, {"a": 2})
    assert points(tmp_path) == [("a", 1), ("a", 2)]


def test_a_point_is_written_once_however_often_its_step_is_lived(tmp_path, journal):
    for step in (64, 128, 192):
        journal.metrics(step, {"a": step, "b": step})
    resumed = Journal(tmp_path)
    for step in (128, 192, 256):
        resumed.metrics(step, {"a": step, "b": step})
    assert points(tmp_path) == [(key, step) for step in (64, 128, 192, 256) for key in ("a", "b")]


def test_a_key_that_a_kill_kept_from_its_step_is_written_when_the_step_is_lived_again(tmp_path, journal):
    journal.metrics(128, {"train/a": 1})
    Journal(tmp_path).metrics(128, {"train/a": 1, "eval/b": 2})
    assert points(tmp_path) == [("train/a", 128), ("eval/b", 128)]


def test_a_picture_is_listed_once_and_points_do_not_stand_in_its_way(tmp_path, journal):
    journal.metrics(128, {"samples": 1})
    for _ in range(3):
        resumed = Journal(tmp_path)
        resumed.picture(128, "samples", tmp_path / "a.png")
        resumed.picture(128, "reconstructions", tmp_path / "b.png")
    assert [event.body["key"] for event in events(tmp_path)[1:]] == ["samples", "reconstructions"]


def test_notes_are_written_every_time(tmp_path, journal):
    for _ in range(2):
        journal.note(128, "note", "again")
    assert len(events(tmp_path)) == 2


def test_how_a_run_ended_is_its_last_status(tmp_path, journal):
    assert ended(tmp_path) is None
    for status, told in (("RUNNING", None), ("FAILED", "FAILED"), ("RUNNING", None), ("FINISHED", "FINISHED")):
        journal.note(1, "status", status)
        journal.note(1, "note", "KILLED")
        assert ended(tmp_path) == told


def test_a_record_that_is_continued_keeps_its_key_and_its_birth(tmp_path, digits):
    first = record(tiny(digits, tmp_path))
    again = record(tiny(digits, tmp_path, {"stop.images": 9999}))
    assert again == first | {"settings": again["settings"]} == read_record(tmp_path / "tiny")
    assert again["settings"]["stop"]["images"] == 9999


def test_two_runs_have_two_keys(tmp_path, digits):
    one, other = (record(tiny(digits, tmp_path, {"name": name})) for name in ("one", "other"))
    assert one["key"] != other["key"]


def test_another_identity_under_the_same_name_is_refused_with_both_values(tmp_path, digits):
    first = record(tiny(digits, tmp_path))
    with pytest.raises(Mistake) as caught:
        record(tiny(digits, tmp_path, {"objective.beta": 2.0}))
    assert str(caught.value) == (
        f"objective.beta is 2.0, but {tmp_path / 'tiny'} was started with 1.0; "
        "choose another name for the new run, or remove that folder"
    )
    assert read_record(tmp_path / "tiny") == first
    with pytest.raises(Mistake, match=r" \(and 2 more settings\); choose"):
        record(tiny(digits, tmp_path, {"objective.beta": 2.0, "seed": 1, "networks.latent": 5}))


def test_a_setting_that_one_of_two_identities_lacks_differs(tmp_path, digits):
    one = record(tiny(digits, tmp_path))
    with pytest.raises(Mistake, match=r"^new is 1, but .* was started with None;"):
        require_same_identity(tmp_path / "tiny", one["identity"] | {"new": 1})
    with pytest.raises(Mistake, match=r"^seed is None, but .* was started with 0;"):
        require_same_identity(
            tmp_path / "tiny", {key: one["identity"][key] for key in one["identity"] if key != "seed"}
        )


@pytest.mark.parametrize("text", ["", "{", '{"name": "tiny"'])
def test_a_damaged_record_is_one_line_and_is_not_overwritten(tmp_path, digits, text):
    record(tiny(digits, tmp_path))
    path = tmp_path / "tiny" / RUN
    path.write_text(text)
    with pytest.raises(Mistake) as caught:
        record(tiny(digits, tmp_path))
    assert str(caught.value) == f"{path} is damaged; restore it, or choose another name for this run"
    assert path.read_text() == text


def test_a_folder_without_a_record_holds_no_run(tmp_path):
    assert read_record(tmp_path) is None
    require_same_identity(tmp_path, {"seed": 1})


def test_runs_are_found_parents_before_their_trials_and_links_are_not_followed(tmp_path, digits):
    record(tiny(digits, tmp_path, {"name": "a"}))
    record(tiny(digits, tmp_path, {"name": "search"}))
    record(tiny(digits, tmp_path / "search", {"name": "trial-00001"}))
    record(tiny(digits, tmp_path / "search", {"name": "trial-00000"}))
    (tmp_path / "round").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in run_directories(tmp_path)]
    assert found == ["a", "search", "search/trial-00000", "search/trial-00001"]
    assert list(run_directories(tmp_path / "nowhere")) == []


def test_a_reader_sees_the_old_text_or_the_new_and_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / RUN
    write_atomically(path, "old")
    held = path.open()
    write_atomically(path, "new" * 1000)
    assert held.read() == "old"
    assert path.read_text() == "new" * 1000
    held.close()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", crash)
        patched.setattr(os, "rename", crash)
        write_atomically(path, "newer")
    assert path.read_text() == "new" * 1000


def test_a_record_is_json_that_people_can_read(tmp_path, digits):
    made = record(tiny(digits, tmp_path))
    text = (tmp_path / "tiny" / RUN).read_text()
    assert json.loads(text) == made == open_record(tmp_path / "tiny", made)
    assert len(text.splitlines()) > 50
