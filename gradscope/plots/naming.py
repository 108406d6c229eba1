"""What lines and panels are called: as short as tells them apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from gradscope.plots.text import symbol


def line_names(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Shortest names that tell (run, site) pairs apart: the run, the site without what all begin with, or both."""
    runs, sites = {run for run, *_ in keys}, {site for _, site, *_ in keys}
    if len(keys) == len(runs):  # one site per run
        return [run for run, *_ in keys]
    short = short_sites(sorted(sites))
    if len(runs) == 1:
        return [short[site] for _, site, *_ in keys]
    return [f"{run}: {short[site]}" for run, site, *_ in keys]


def short_sites(sites: Sequence[str]) -> dict[str, str]:
    """Each site without the modules that all of them begin with; a single one is kept whole."""
    prefix = common_prefix(sites)
    return {site: site[len(prefix) :] for site in sites}


def common_prefix(sites: Sequence[str]) -> str:
    """Path, up to a dot, with which several sites begin; empty for a single one.

    The module itself stays in front of its levels: ``l0`` and ``l1`` alone read as 10 and 11 in a paper's type.
    """
    if len(set(sites)) < 2:
        return ""
    first, last = min(sites), max(sites)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    slash = first.rfind("/", 0, same)
    return first[: first.rfind(".", 0, slash if slash >= 0 else same) + 1]


def with_lines(data: pd.DataFrame) -> pd.DataFrame:
    """The table with ``name``: that of the line a row belongs to, with its quantity where the lines differ in it.

    Lines are told apart by the column ``line`` (of which several runs may be the seeds) or else ``run``, and ``site``.
    """
    whose = "line" if "line" in data else "run"
    keys = list(data[[whose, "site"]].drop_duplicates().itertuples(index=False, name=None))
    names = dict(zip(keys, line_names(keys), strict=True))
    named = [names[key] for key in zip(data[whose], data["site"], strict=True)]
    if "quantity" in data and data["quantity"].nunique() > 1:
        named = [f"{name}, {symbol_plain(q)}" for name, q in zip(named, data["quantity"], strict=True)]
    return data.assign(name=named)


def symbol_plain(quantity: str) -> str:
    """∂L/∂c_t and the like without mathematics, for a name."""
    plain = symbol(quantity).strip("$").replace(r"\partial ", "∂").replace("|_{h_t}", " (carry)")
    plain = re.sub(r"\|_\{([a-z ]+)\}", r" (\1)", plain)  # of the part that came through the cell path, say
    return plain.replace("_t", "") if "\\" not in plain and "{" not in plain else quantity
