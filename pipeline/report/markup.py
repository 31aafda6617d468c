"""HTML and SVG as nested calls. Text is escaped where it goes in, so that no name anybody chose can become markup."""

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
