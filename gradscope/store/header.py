"""What a run says of itself, read back from JSON that may be anybody's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradscope.errors import RunDamagedError, SchemaVersionError
from gradscope.schema import SCHEMA_VERSION, Coverage, RunMeta, SiteInfo
from gradscope.store.part import Header


def check_version(version: Any, path: Path) -> None:
    """Refuse a format of a newer major version.

    Raises
    ------
    SchemaVersionError
    RunDamagedError
        It is no version at all.
    """
    try:
        major = int(str(version).split(".")[0])
    except ValueError:
        raise RunDamagedError(f"{str(path)!r} is not a gradscope run: it states no schema version.") from None
    if major > int(SCHEMA_VERSION.split(".")[0]):
        raise SchemaVersionError(
            f"{str(path)!r} was written in format {version}; this gradscope reads up to {SCHEMA_VERSION}. "
            "Upgrade with `pip install --upgrade gradscope-rnn`."
        )


def parse_header(data: Mapping[str, Any], **numbers: Any) -> Header:
    """Header from parsed JSON; unknown fields of newer minor versions are ignored.

    Raises
    ------
    ValueError
        It has the wrong shape.
    """
    try:
        return Header(
            metas=tuple(_meta(entry) for entry in data.get("metas", ())),
            sites={entry["site"]: SiteInfo.from_json(entry) for entry in data.get("sites", ())},
            coverage=tuple(_known(Coverage, entry) for entry in data.get("coverage", ())),
            lost={str(reason): int(count) for reason, count in data.get("lost", {}).items()},
            **numbers,
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"its description is malformed ({error!r})") from error


def _known(cls: type, entry: Mapping[str, Any]) -> Any:
    return cls(**{name: entry[name] for name in cls.__dataclass_fields__ if name in entry})  # type: ignore[attr-defined]


def _meta(entry: Mapping[str, Any]) -> RunMeta:
    meta: RunMeta = _known(RunMeta, entry)
    if not isinstance(meta.settings, dict) or not isinstance(meta.model, dict):
        raise TypeError("settings and model must be objects")
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
