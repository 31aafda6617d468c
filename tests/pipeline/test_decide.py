"""A champion is replaced only by what is better, by the figure that is asked for, on the same data."""

import pytest

from pipeline.registry.decide import Contender, Keep, Promote, decide

FD, PSNR = "eval/fd_pca64/samples", "eval/psnr/reconstructions"


def contender(data: str = "d", **figures: float) -> Contender:
    return Contender({{"fd": FD, "psnr": PSNR}[name]: value for name, value in figures.items()}, data)


def test_the_first_of_all_is_promoted():
    assert decide(contender(fd=99.0), None, FD) == Promote("there is no champion yet")


@pytest.mark.parametrize(
    ("metric", "new", "old", "verdict"),
    [
        (FD, 1, 2, Promote),
        (FD, 2, 1, Keep),
        (PSNR, 2, 1, Promote),
        (PSNR, 1, 2, Keep),
        (FD, 1, 1, Keep),
        (PSNR, 1, 1, Keep),
    ],
)
def test_better_goes_the_way_of_the_figure_and_a_draw_changes_nothing(metric, new, old, verdict):
    decision = decide(Contender({metric: new}, "d"), Contender({metric: old}, "d"), metric)
    assert decision == verdict(f"{metric} {new} against the champion's {old}")


def test_only_the_figure_that_is_asked_for_counts():
    better_samples = contender(fd=1.0, psnr=1.0), contender(fd=2.0, psnr=2.0)
    assert isinstance(decide(*better_samples, FD), Promote)
    assert isinstance(decide(*better_samples, PSNR), Keep)


def test_figures_of_other_data_are_not_compared():
    decision = decide(contender("a" * 20, fd=0.0), contender("b" * 20, fd=9.0), FD)
    assert decision == Keep("measured on aaaaaaaaaaaaaaaaaaaa, the champion on bbbbbbbbbbbbbbbbbbbb: not comparable")


def test_a_champion_without_the_figure_stays():
    assert decide(contender(fd=0.0), contender(psnr=9.0), FD) == Keep(f"the champion has no {FD} to compare with")


def test_a_figure_that_is_not_finite_is_better_than_none():
    for metric in (FD, PSNR):
        for champion in (1.0, float("nan")):
            nan = Contender({metric: float("nan")}, "d")
            assert isinstance(decide(nan, Contender({metric: champion}, "d"), metric), Keep)
