"""HTML and SVG as nested calls. Text is escaped where it goes in, so that no name anybody chose can become markup."""

import time
from collections.abc import Sequence
from html import escape

VOID = {"br", "img", "link", "meta"}


class Html(str):
    """Markup; any other string is text."""


def tag(name: str, /, *inside: str, **attributes: str) -> Html:
    """An element; `class_` is written class, `text_anchor` text-anchor."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{together(*inside)}</{name}>")


def together(*parts: str) -> Html:
    """Elements and text one after the other."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def section(title: str, *inside: Html) -> Html:
    """A part of the page under its heading; nothing where it would be empty."""
    return tag("section", tag("h2", title), *inside) if any(inside) else Html()


def fold(title: str, *inside: Html) -> Html:
    """What unfolds when asked for."""
    return tag("details", tag("summary", title), *inside)


def tabled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Rows under their heads; the first cell of a row is its name."""
    top = tag("tr", *(tag("th", head, scope="col") for head in heads))
    body = [tag("tr", tag("th", name, scope="row"), *(tag("td", cell) for cell in cells)) for name, *cells in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="wide")


def date(time_ms: int) -> str:
    """A moment, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(time_ms / 1000))
