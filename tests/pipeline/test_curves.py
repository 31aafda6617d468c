"""Curves: nothing is lost that a reader needs, whatever a run has logged."""

import pytest

from pipeline.evaluation import curves
from pipeline.evaluation.curves import Panel, Series, panels, points_of, thinned
from pipeline.rundir import PICTURES, Event, Journal, read_journal
from pipeline.training.launch import _draw_curves


def grouped(*names: str) -> dict[str, list[str]]:
    """Panel -> its lines, for metrics that change."""
    return {
        panel.key: [series.label for series in panel.series]
        for panel in panels({name: [(1, 1.0), (2, 2.0)] for name in names})
    }


def test_a_run_that_has_curves_gets_their_picture_however_it_ended(tmp_path):
    journal = Journal(tmp_path)
    journal.note(0, "status", "RUNNING", "")
    _draw_curves(tmp_path)
    assert not (tmp_path / PICTURES).exists()
    for step in (10, 20):
        journal.metrics(step, {"train/autoencoder/kl": float(step)})
    journal.note(20, "status", "FAILED", "why")
    _draw_curves(tmp_path)
    pictured = [event.body["path"] for event, _ in read_journal(tmp_path, 0) if event.kind == "picture"]
    assert pictured == [f"{PICTURES}/curves-000000020.png"]
    assert (tmp_path / str(pictured[0])).exists()
    _draw_curves(tmp_path / "gone")


def test_what_is_compared_shares_a_panel():
    assert grouped(
        "train/discriminator/real",
        "train/discriminator/samples",
        "train/discriminator/logit_real",
        "train/discriminator/logit_fake",
        "train/discriminator/penalty",
        "train/discriminator/gradient_norm",
        "train/autoencoder/gradient_norm",
        "train/autoencoder/kl",
        "eval/fd_pca64/samples",
        "eval/fd_pca64/reconstructions",
        "startup/imports",
    ) == {
        "train/discriminator": ["real", "samples"],
        "train/logits": ["real", "fake"],
        "train/penalty": ["discriminator"],
        "train/gradient_norm": ["discriminator", "autoencoder"],
        "train/kl": ["autoencoder"],
        "eval/fd_pca64": ["samples", "reconstructions"],
    }


def test_what_never_changes_is_no_curve_unless_it_is_a_figure():
    assert [panel.key for panel in panels({"schedule/beta": [(1, 2.0), (2, 2.0)], "eval/psnr/x": [(1, 2.0)]})] == [
        "eval/psnr"
    ]


def test_a_point_that_is_not_finite_is_left_out_of_its_curve():
    (panel,) = panels({"train/autoencoder/kl": [(1, 1.0), (2, float("nan")), (3, 2.0), (4, float("inf"))]})
    assert panel.series == (Series("autoencoder", [(1, 1.0), (3, 2.0)]),)


@pytest.mark.parametrize("count", [1, 299, 300])
def test_a_short_curve_is_drawn_as_it_is(count):
    curve = [(float(x), float(x * x)) for x in range(count)]
    assert thinned(curve) == curve


@pytest.mark.parametrize("count", [301, 600, 100_000])
def test_a_long_curve_keeps_its_means(count):
    few = thinned([(float(x), float(3 * x)) for x in range(count)])
    assert 100 < len(few) <= curves.MOST_POINTS
    assert all(y == pytest.approx(3 * x) for x, y in few)
    if count % len(few) == 0:
        assert sum(x for x, _ in few) / len(few) == pytest.approx((count - 1) / 2)


def test_a_scale_is_logarithmic_where_values_above_0_differ_much():
    def log(*values: float, guide: float = 5.0) -> bool:
        return Panel("", "", "", (Series("", list(enumerate(values))),), ((guide, ""),)).log

    assert log(0.1, 40)
    assert not log(3, 50)
    assert not log(-0.1, 40)
    assert not log(0.1, 40, guide=0)


def test_points_come_back_by_name_in_order():
    events = [
        Event(0, 1, "metrics", {"a": 1.0, "b": 2}),
        Event(0, 1, "note", {"text": "hello"}),
        Event(0, 5, "metrics", {"a": 3.0}),
    ]
    assert points_of(events) == {"a": [(1, 1.0), (5, 3.0)], "b": [(1, 2.0)]}


def test_a_picture_of_curves_has_a_place_for_every_panel():
    one = panels({"train/autoencoder/kl": [(1, 1.0), (2, 3.0)]})
    few, more = curves.drawn(one), curves.drawn(one * 5, columns=2)
    assert few.format == more.format == "PNG"
    assert (more.width * 2, more.height) == (few.width, 3 * few.height)
