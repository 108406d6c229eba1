"""What a run says of itself, read back from JSON that may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradscope.errors import RunDamagedError, SchemaVersionError
from gradscope.schema import SCHEMA_VERSION, Coverage, RunMeta, SiteInfo
from gradscope.store.fields import Check, is_flag, is_object, is_text, is_texts, typed, within
from gradscope.store.part import Header

_count = within(0)

_SITE: dict[str, Check] = {
    **dict.fromkeys(("site", "module", "module_class", "cell", "curve", "how"), is_text),
    **dict.fromkeys(("layer", "input_size", "hidden_size", "proj_size", "call"), _count),
    **dict.fromkeys(("gates", "weights"), is_texts),
    "reverse": is_flag,
}
_COVERAGE: dict[str, Check] = {"site": is_text, "status": is_text, "reason": is_text, "count": _count}
_META: dict[str, Check] = {
    **dict.fromkeys(("created_at", "gradscope_version", "torch_version"), is_text),
    **dict.fromkeys(("settings", "model", "environment"), is_object),
    **dict.fromkeys(("attempt", "rank", "world_size"), _count),
}
_MODEL: dict[str, Check] = {"class": is_text, "parameters": within(0, 2**62)}

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(\.\d{1,4})*", re.ASCII)


def check_version(version: Any, path: Path) -> tuple[int, int]:
    """Major and minor number of a format; a newer major one is refused.

    Raises
    ------
    SchemaVersionError
    RunDamagedError
        It is no version at all.
    """
    match = _VERSION.fullmatch(version) if isinstance(version, str) else None
    if match is None or int(match[1]) < 1:
        raise RunDamagedError(f"{str(path)!r} is not a gradscope run: it states no schema version.")
    if int(match[1]) > int(SCHEMA_VERSION.split(".")[0]):
        raise SchemaVersionError(
            f"{str(path)!r} was written in format {version}; this gradscope reads up to {SCHEMA_VERSION}. "
            "Upgrade with `pip install --upgrade gradscope-rnn`."
        )
    return int(match[1]), int(match[2])


def parse_header(data: Mapping[str, Any], **numbers: Any) -> Header:
    """Header from parsed JSON; unknown fields of newer minor versions are ignored.

    Raises
    ------
    ValueError
        It has the wrong shape.
    """
    lists = {name: data.get(name, []) for name in ("metas", "sites", "coverage")}
    lost = data.get("lost", {})
    if not all(isinstance(value, list) for value in lists.values()) or not isinstance(lost, dict):
        raise ValueError("its description is malformed")
    if not all(is_text(reason) and _count(count) for reason, count in lost.items()):
        raise ValueError("'lost' is no object of counts")
    try:
        sites = [parse_site(entry) for entry in lists["sites"]]
        coverage = tuple(Coverage(**typed(_COVERAGE, entry, "the coverage")) for entry in lists["coverage"])
        return Header(
            metas=tuple(_meta(entry) for entry in lists["metas"]),
            sites={info.site: info for info in sites},
            coverage=coverage,
            lost=dict(lost),
            **numbers,
        )
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"its description is malformed ({error})") from error


def parse_site(entry: Any) -> SiteInfo:
    """What is known of a site, from parsed JSON.

    Raises
    ------
    ValueError
    """
    return SiteInfo.from_json(typed(_SITE, entry, "a site"))


def _meta(entry: Any) -> RunMeta:
    meta = RunMeta(**typed(_META, entry, "the run"))
    typed(_MODEL, meta.model, "the model")
    return meta


def merge(headers: Iterable[Header]) -> Header:
    """One header for several attempts and ranks: counts add up, the first description of a site stands."""
    metas: list[RunMeta] = []
    sites: dict[str, SiteInfo] = {}
    coverage: dict[tuple[str, str, str], int] = {}
    lost: dict[str, int] = {}
    for header in headers:
        metas += header.metas
        sites = {**header.sites, **sites}
        for entry in header.coverage:
            key = (entry.site, entry.status, entry.reason)
            coverage[key] = coverage.get(key, 0) + entry.count
        for reason, count in header.lost.items():
            lost[reason] = lost.get(reason, 0) + count
    merged = tuple(Coverage(*key, count) for key, count in coverage.items())
    return Header(tuple(metas), sites, merged, lost, closing=True)
