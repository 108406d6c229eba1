"""A figure's SVG made fit to stand inside a page, next to others."""

from __future__ import annotations

import re
from html import escape


def inline(svg: bytes, prefix: str, description: str) -> str:
    """``svg`` as an element for HTML: own ids, own style, no namespaces, scales with the page, described in words.

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
    width = box.group(1).split()[2] if box else "100%"
    opening = (
        f'<svg id="{prefix}" role="img" aria-label="{escape(description, quote=True)}" '
        f'viewBox="{box.group(1) if box else ""}" style="width:100%;max-width:{float(width) * 4 / 3:.0f}px;height:auto"'
    )
    return f"{opening}>{body}".strip()
