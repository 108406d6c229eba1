"""A figure's SVG made fit to stand inside a page, next to others."""

from __future__ import annotations

import re
from html import escape

#: Pixels per point on a wide screen: a third larger than drawn.
_ENLARGED = 16 / 9

#: Up to this height, of its width, a figure may share a printed sheet with another.
_LANDSCAPE = 0.8


def inline(svg: bytes, prefix: str, title: str, described_by: str = "") -> str:
    """``svg`` as an element for HTML: own ids, own style, no namespaces, scales with the page, described in words.

    ``title`` names the figure; ``described_by`` is the id of the words that hold its numbers.

    Matplotlib numbers ids per file and styles ``*``: pasted as they are, figures would take each other's glyphs and
    the page would take their style.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = text.replace("*{", f"#{prefix} *{{")
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None, "matplotlib writes one"
    width, height = map(float, box.group(1).split()[2:])
    described = f'aria-describedby="{described_by}" ' if described_by else ""
    shape = 'class="landscape" ' if height < _LANDSCAPE * width else ""
    opening = (
        f'<svg id="{prefix}" role="img" aria-label="{escape(title, quote=True)}" {described}{shape}'
        f'viewBox="{box.group(1)}" style="width:100%;max-width:{width * _ENLARGED:.0f}px;height:auto"'
    )
    return f"{opening}>{body}".strip()
