"""What a file says of itself, in every wrong way: missing, of another type, malformed, deep, large, out of range."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.torture.resum import resum_segment
from tests.torture.strange import SEGMENT, Make

TEXTS = ("schema", "schema_version", "metas", "sites", "coverage", "lost")
NUMBERS = ("n_records", "first_id", "last_id", "closing", "crc32")

VERSIONS = (
    "",
    "-1.0",
    "0.9",
    "1",
    "1.x",
    "x",
    "1.1.1.1.1.1",
    "99999999999999999999.0",
    "2.0",
    "1.-1",
    " 1.1",
    "١.٢",
    "1e3.0",
)
SITE_FIELDS: dict[str, Any] = {
    "site": 5, "module": None, "cell": {}, "layer": "0", "reverse": "no", "input_size": -1, "hidden_size": 1e300,
    "proj_size": 2**63, "gates": "ifgo", "curve": ["cell"], "call": True, "how": 0, "weights": [1, 2],
}  # fmt: skip
META_FIELDS: dict[str, Any] = {
    "created_at": 5, "gradscope_version": None, "settings": [], "model": "LSTM", "environment": 3, "attempt": "1",
    "rank": -1, "world_size": 1.5,
}  # fmt: skip
MODEL_FIELDS: dict[str, Any] = {"class": 5, "parameters": "many"}
COVERAGE_FIELDS: dict[str, Any] = {"site": None, "status": 5, "reason": {}, "count": -3}
ODD_SETTINGS: dict[str, Any] = {
    "labels of lists": {"labels": {"a": [1], "b": {"c": 1}}},
    "labels without numbers": {"labels": {"seed": None, "lr": "nan", "threshold": "x", "length": {}}},
    "labels beyond numbers": {"labels": {"seed": 10**400, "threshold": 1e308, "length": -5}},
    "labels with markup": {"labels": {"init": "<script>alert(1)</script>", "cell": "$\\frac{"}},
    "every of text": {"every": "x" * 10_000, "samples": -1},
    "not a number": {"labels": {"threshold": float("nan"), "chance_loss": float("inf")}},
}


def cases() -> Iterator[tuple[str, Make, str]]:
    for name in (*TEXTS, *NUMBERS):
        yield f"no {name}", _attribute(name, None), "sealed"
        yield f"{name} of another type", _attribute(name, np.arange(4.0)), "sealed"
        yield f"{name} of variable length", _attribute(name, "[]"), "sealed"
    for name in ("n_records", "first_id", "last_id"):
        for value in (-1, 2**62, 2**31 - 1):
            yield f"{name} {value}", _attribute(name, np.int64(value)), "sealed"
    for version in VERSIONS:
        yield f"version {version!r}", _text("schema_version", version), "sealed"
    for name in ("metas", "sites", "coverage", "lost"):
        for what, text in _malformed().items():
            yield f"{name} {what}", _text(name, text), "sealed"
    for name, fields in (("sites", SITE_FIELDS), ("metas", META_FIELDS), ("coverage", COVERAGE_FIELDS)):
        for field, value in fields.items():
            yield f"{name} with {field} {str(value)[:20]}", _field(name, field, value), "sealed"
    for field, value in MODEL_FIELDS.items():
        yield f"model with {field} {value}", _inner("model", {field: value}), "sealed"
    for what, settings in ODD_SETTINGS.items():
        yield what, _inner("settings", settings), "sealed"
    yield "lost that is no count", _text("lost", '{"a": "b"}'), "sealed"
    yield "lost beyond numbers", _text("lost", '{"a": 1e999}'), "sealed"
    yield "half a character in a name", _field("sites", "module_class", "\ud800"), "sealed"
    yield "a thousand sites without records", _many_sites, "sealed"
    yield "a site's name that differs from its group", _field("sites", "site", "../../../etc/passwd"), "sealed"


def _malformed() -> dict[str, str]:
    return {
        "that is no JSON": "{",
        "that is empty": "",
        "null": "null",
        "a number": "5",
        "of nulls": "[null, null]",
        "of lists": "[[], []]",
        "nested deep": "[" * 100_000,
        "nested deep and closed": "[" * 500 + "]" * 500,
        "a long number": "9" * 100_000,
        "a million lists": "[" + "[],[]," * 500_000 + "[]]",
        "a name twice": '[{"site": "a", "site": "b"}]',
    }


def _open(run: Path) -> h5py.File:
    return h5py.File(run / SEGMENT, "r+", libver=("v108", "v110"))


def _attribute(name: str, value: Any) -> Make:
    def make(run: Path, outside: Path) -> None:
        with _open(run) as file:
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
        if name != "crc32":
            resum_segment(run / SEGMENT)

    return make


def _text(name: str, text: str) -> Make:
    def make(run: Path, outside: Path) -> None:
        with _open(run) as file:
            raw = text.encode()
            file.attrs.create(name, raw, dtype=h5py.string_dtype("utf-8", max(len(raw), 1)))
        resum_segment(run / SEGMENT)

    return make


def _said(run: Path, name: str) -> Any:
    with _open(run) as file:
        return json.loads(bytes(file.attrs[name]))


def _field(name: str, field: str, value: Any) -> Make:
    def make(run: Path, outside: Path) -> None:
        said = _said(run, name)
        said[0][field] = value
        _text(name, json.dumps(said))(run, outside)

    return make


def _inner(name: str, fields: dict[str, Any]) -> Make:
    def make(run: Path, outside: Path) -> None:
        said = _said(run, "metas")
        said[0][name] = {**said[0][name], **fields}
        _text("metas", json.dumps(said))(run, outside)

    return make


def _many_sites(run: Path, outside: Path) -> None:
    one = _said(run, "sites")[0]
    _text("sites", json.dumps([{**one, "site": f"m.{k}/l0"} for k in range(1000)]))(run, outside)
