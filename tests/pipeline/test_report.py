"""A report tells what the run's folder holds, to people and not to browsers, and asks the network for nothing."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.errors import Mistake
from pipeline.evaluation.curves import Panel, Series
from pipeline.evaluation.protocol import Evaluation
from pipeline.report.charts import HEIGHT, WIDTH, chart, scale
from pipeline.report.figures import Side, table
from pipeline.report.markup import Html, tag, together
from pipeline.report.write import report
from pipeline.rundir import Journal
from pipeline.training import checkpoints
from tests.pipeline import small

NAME = """<img src=x onerror="alert('1')">&amp;"""
METRIC = "eval/fd_pca64/samples"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What a browser makes of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        """(element, attribute, value)."""
        self.elements: set[str] = set()
        self.words: list[str] = []
        self.styles = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.elements.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.styles += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def home(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under a hostile name, one to compare with, and a search of both settings."""
    home = tmp_path_factory.mktemp("runs")
    for name, beta, folder in ((NAME, 2.5, home), ("plain", 1.0, home), ("trial-00000", 9.0, home / "search")):
        settings = small.tiny(digits, folder, {"name": name, "objective.beta": beta})
        small.run(settings)
        small.record(settings, parent=".." if folder != home else None)
    shutil.copytree(home / "plain", home / "search" / "trial-00001")
    small.record(small.tiny(digits, home, {"name": "search"}), kind="search")
    journal = Journal(home / NAME)
    journal.note(128, "warning", "posterior collapse: <script>alert(2)</script>")
    journal.note(256, "status", "FINISHED", "256 images seen")
    return home


def written(home: Path, tmp_path: Path, ref: str, *against: str) -> str:
    out = tmp_path / "report.html"
    report(ref, home, out, against)
    return out.read_text()


def test_a_report_tells_how_a_run_ended_its_figures_and_its_settings(home, tmp_path):
    page = Page(written(home, tmp_path, NAME))
    newest = checkpoints.listed(home / NAME)[-1]
    assert newest.figures
    for told in (
        "finished",
        "256 images seen",
        *(f"{value:.4g}" for value in newest.figures.values()),
        *newest.figures,
        "objective.beta 2.5 1",
        "vaegan train",
        json.loads((home / NAME / "run.json").read_text())["data"]["digest"],
        "posterior collapse",
    ):
        assert told in page.text, told


def test_a_report_shows_every_kind_of_picture_there_is(home, tmp_path):
    shown = [
        value for tag, name, value in Page(written(home, tmp_path, NAME)).attributes if (tag, name) == ("img", "src")
    ]
    kinds = {path.name.rpartition("-")[0] for path in (home / NAME / "pictures").iterdir()}
    assert len(shown) >= len(kinds) >= 2


def test_no_text_becomes_markup(home, tmp_path):
    page = Page(written(home, tmp_path, NAME))
    assert f"{NAME} · vaegan" in page.text and "<script>alert(2)</script>" in page.text
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}
    assert "script" not in page.elements


def test_a_report_refers_to_nothing_outside_itself(home, tmp_path):
    page = Page(written(home, tmp_path, NAME, "plain"))
    loads = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "ping", "manifest"}
    assert {value.partition(",")[0] for _, name, value in page.attributes if name in loads} == {"data:image/png;base64"}
    assert page.elements.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image"}
    )
    assert "@import" not in page.styles and "url(" not in page.styles and page.styles.count("{") > 20
    assert not [value for _, name, value in page.attributes if name == "style"]
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes


def requests(page: Path, folder: Path) -> set[str]:
    """What a page makes Chromium ask the network for; what Chromium wants for itself has no initiator."""
    log = folder / "net.json"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}", "--dump-dom", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=100, check=True)
    asked = [
        event["params"] for event in json.loads(log.read_text())["events"] if "initiator" in event.get("params", {})
    ]
    return {one["url"] for one in asked if one["initiator"] != "not an origin"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_chromium_makes_no_request_for_a_report(home, tmp_path):
    out, control = tmp_path / "report.html", tmp_path / "control.html"
    report(NAME, home, out, ["plain"])
    control.write_text("<img src='http://elsewhere.invalid/x.png'>")
    assert requests(out, tmp_path) == set()
    assert requests(control, tmp_path) == {"http://elsewhere.invalid/x.png"}


def test_curves_stand_beside_what_real_images_reach_and_signs_of_trouble_come_first(home, tmp_path):
    shutil.copytree(home / "plain", tmp_path / "ill")
    for one in checkpoints.listed(tmp_path / "ill"):
        protocols = {METRIC: {"samples": 64, "floor": 0.5}}
        ill = Evaluation(figures=one.figures, protocols=protocols, health=("mode_collapse",))
        checkpoints.write_evaluation(one.path, ill)
    text = Page(written(tmp_path, tmp_path, "ill")).text
    assert text.index("mode_collapse") < text.index("floor") < text.index("real images", text.index("Curves"))


def test_settings_of_runs_compared_stand_side_by_side(home, tmp_path):
    text = Page(written(home, tmp_path, NAME, "plain")).text
    assert "setting this run unless set plain" in text
    assert "objective.beta 2.5 1 1" in text


def test_the_report_of_a_search_is_that_of_its_best_trial(home, tmp_path):
    text = Page(written(home, tmp_path, "search")).text
    trials = [home / "search" / f"trial-0000{n}" for n in (0, 1)]
    figures = [min(one.figures[METRIC] for one in checkpoints.listed(trial)) for trial in trials]
    best = figures.index(min(figures))
    assert "best of 2 trials of search" in text
    assert text.index(f"trial-0000{best} ") < text.index(f"trial-0000{1 - best} ")
    assert f"{figures[0]:.4g}" in text and f"{figures[1]:.4g}" in text


def test_a_run_without_a_checkpoint_has_a_report_too(digits, tmp_path):
    settings = small.tiny(digits, tmp_path, {"name": "begun"})
    small.record(settings)
    Journal(tmp_path / "begun").note(0, "status", "FAILED", "train/autoencoder/kl is not finite")
    text = Page(written(tmp_path, tmp_path, "begun")).text
    assert "failed" in text and "train/autoencoder/kl is not finite" in text and "There are no figures" in text


def test_where_there_is_no_registry_the_report_says_so_and_makes_none(digits, home, tmp_path):
    shutil.copytree(home / "plain", tmp_path / "plain")
    uri = f"sqlite:///{tmp_path}/nothing.db"
    small.record(small.tiny(digits, tmp_path, {"name": "plain", "register": "model"}), uri)
    text = Page(written(tmp_path, tmp_path, "plain")).text
    assert f"There is no champion to compare with: models:/model@champion: no registry at {uri}" in text
    assert not (tmp_path / "nothing.db").exists()


def test_passwords_in_addresses_are_not_passed_on(digits, tmp_path):
    small.record(
        small.tiny(digits, tmp_path, {"tracking.uri": "https://me:p@secret@host/"}), "https://me:p@secret@host/"
    )
    text = written(tmp_path, tmp_path, "tiny")
    assert "secret" not in text and "https://***@host/" in text


@pytest.mark.parametrize(
    ("ref", "against", "trouble"),
    [
        ("nothing", [], "there is no run 'nothing'"),
        ("models:/digits@champion", [], "is a registered model"),
        ("plain", ["plan"], "did you mean 'plain'"),
    ],
)
def test_what_cannot_be_found_is_one_line(home, tmp_path, ref, against, trouble):
    with pytest.raises(Mistake, match=trouble):
        report(ref, home, tmp_path / "report.html", against)


def test_a_place_that_cannot_be_written_is_one_line(home, tmp_path):
    with pytest.raises(Mistake, match=r"--out is .*No such file or directory"):
        report("plain", home, tmp_path / "nowhere" / "report.html", [])


def side(label: str, value: float, samples: int = 100, **beside: float) -> Side:
    protocol = {"data": "39b51cc15c04", "samples": samples, **beside}
    return Side(label, "", Evaluation(figures={METRIC: value}, protocols={METRIC: protocol}))


def bold(html: Html) -> list[str]:
    return re.findall(r"<b>([^<]*)</b>", html)


def test_the_best_of_figures_measured_alike_is_bold():
    assert bold(table([side("mine", 2.0, floor=0.5), side("other", 3.0, noise=0.1)])) == ["2"]
    assert bold(table([side("mine", 2.0), side("other", 1.5, floor=0.5)])) == ["1.5"]
    assert bold(table([side("mine", 2.0)])) == []


def test_a_figure_measured_otherwise_is_shown_and_not_compared():
    html = table([side("mine", 2.0), side("other", 1.5, samples=50)])
    assert bold(html) == [] and "1.5*" in html
    assert "other was measured otherwise: eval/fd_pca64/samples with samples 50; here samples 100." in Page(html).text


def test_a_figure_stands_beside_its_noise_and_its_floor():
    assert "2 ± 0.12 0.71" in Page(table([side("mine", 2.0, noise=0.123, floor=0.71)])).text
    assert "0.71 of 1,440 images" in Page(table([side("mine", 2.0, floor=0.71, floor_samples=1_440)])).text


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a<b", tag("b", '"&"'), title='"') == '<p title="&quot;">a&lt;b<b>&quot;&amp;&quot;</b></p>'
    assert together("<", Html("<br>")) == "&lt;<br>"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.11), (3, 3), (1e-6, 5e4), (17, 90_048), (0.02, 1e9)])
def test_ticks_are_few_round_and_inside(low, high, log):
    found = scale([low, high], 0, 100, log=log)
    ticks = found.ticks()
    assert len(ticks) <= 6 and ticks == sorted(set(ticks))
    assert all(found.low <= tick <= found.high and len(f"{tick:.3g}") <= 8 for tick in ticks)
    assert all(0 <= found(tick) <= 100 for tick in ticks)
    assert len(ticks) >= 2 or log


def coordinates(html: Html) -> Iterator[tuple[float, float]]:
    for points in re.findall(r'points="([^"]*)"', html):
        for point in points.split():
            x, _, y = point.partition(",")
            yield float(x), float(y)


@pytest.mark.parametrize("values", [(1, 2, 3), (0.001, 5, 1000), (4, 4, 4), (-5, 0, 5)])
def test_a_curve_stays_in_its_field_and_rises_where_values_do(values):
    drawn = list(coordinates(chart(Panel("x", "x", "", (Series("x", list(enumerate(values, 1))),), ((1.0, "one"),)))))
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in drawn)
    rises = [a[1] >= b[1] for a, b in pairwise(drawn)]
    assert len(drawn) == 3 and all(rises)
