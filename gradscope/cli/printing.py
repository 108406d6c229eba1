"""How a command prints what a page holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.report import ReportPaths


def numbers(written: ReportPaths) -> str:
    """``summary.json`` of a page that was written, and where the page is, as JSON."""
    found = json.loads(written.summary.read_text(encoding="utf-8"))
    return json.dumps({"report": str(written.index), **found}, indent=2, sort_keys=True)
