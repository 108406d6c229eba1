"""Runs to one page: the answer first, then figures, clipping, coverage, and everything as files."""

from __future__ import annotations

from gradscope.report.build import ReportPaths, build_report

__all__ = ["ReportPaths", "build_report"]
