"""From a snapshot to decay fits and words: the same numbers, and the same judgement, as of a recorded run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradscope.capture.calls.reduction import TENSORS, site_record
from gradscope.errors import NotRecordedError, SettingError, UnknownNameError
from gradscope.schema import DATASETS, QUANTITIES
from gradscope.words import sentence, verdict_first

if TYPE_CHECKING:
    from gradscope.capture.probes.snapshot import SiteSnapshot, Snapshot
    from gradscope.diagnostics import DecayFit
    from gradscope.reading.curves import Norms

#: Quantities with a decay through time: the direct gradient is no adjoint.
DECAYING = tuple(name for name in QUANTITIES if DATASETS.get(name) == ("sequence", "lag") and name != "direct")


def quantities_of(site: SiteSnapshot) -> tuple[str, ...]:
    """Return what the site has that decays, the one that describes it first."""
    names = dict.fromkeys((site.info.curve, *DECAYING))
    return tuple(name for name in names if name in TENSORS and TENSORS[name](site.adjoints) is not None)


def norms_of(snapshot: Snapshot, site: str, quantity: str | None = None) -> Norms:
    """Return the norms of a site against lag, as a record would hold them.

    Raises
    ------
    UnknownNameError, SettingError, NotRecordedError
        No such site or quantity; a quantity without a decay; one that the site does not have.
    """
    # Only here: attaching to a model should not wait for pandas.
    import pandas as pd

    from gradscope.reading.curves import Norms, has_layer_above

    at = snapshot[site]
    has = quantities_of(at)
    if quantity is None and not has:
        raise NotRecordedError(f"{site}: nothing with a curve against lag was measured there.")
    name = quantity or has[0]
    if name not in QUANTITIES:
        raise UnknownNameError("quantity", name, DECAYING)
    if name not in DECAYING:
        raise SettingError(f"{name!r} has no norm per sequence and lag, so no decay to fit.")
    at._tensor(name)  # says why there is none
    direct = {"direct"} if at.adjoints.direct is not None else set()
    hidden = {"hidden"} if at.adjoints.hidden is not None else set()
    rows = torch.arange(at.adjoints.order.batch, device="cpu")
    record = site_record(at.adjoints, {name, *direct, *hidden}, at.info.gates, rows, False, at.carried, at.after)
    total = record.arrays.get("hidden", record.arrays[name] if name.startswith("state_") else None)
    return Norms(
        records=pd.DataFrame([{"step": 0, "after": at.after, "smallest_normal": record.smallest_normal}]),
        values=np.asarray(record.arrays[name], dtype=np.float64)[None],
        lengths=np.asarray(record.lengths, dtype=np.int64)[None],
        direct=record.arrays["direct"][None] if direct else None,
        total=None if total is None else total[None],
        above="layer" if has_layer_above(snapshot.sites, site) else "loss",
    )


def decay(snapshot: Snapshot, site: str | None = None, quantity: str | None = None, **options: Any) -> DecayFit:
    """:meth:`Snapshot.decay`."""
    if site is None and len(snapshot) != 1:
        raise SettingError(f"the snapshot has {len(snapshot)} sites; say which: {', '.join(snapshot.sites) or 'none'}.")
    found = norms_of(snapshot, snapshot.sites[0] if site is None else site, quantity)
    return found.fit(np.array([0]), **options)


def said(snapshot: Snapshot) -> list[str]:
    """Return a sentence for every site, and a line for everything that was not seen."""
    lines = []
    for name, site in snapshot.items():
        has = quantities_of(site)
        if not has:
            lines.append(f"{name}: no gradient with a curve")
            continue
        fit = decay(snapshot, name)
        lines.append(verdict_first(fit.verdict, sentence(fit, f"{name} ({has[0]})")))
    missing = [line for line in snapshot.coverage if line.status == "missing"]
    return lines + [f"{line.site}: not measured: {line.reason}" for line in missing]


def shapes(site: SiteSnapshot) -> str:
    """Return what a site holds, without a number of it: a tensor printed whole says nothing."""
    info, has = site.info, quantities_of(site)
    listed = ", ".join(f"{name} {tuple(site._tensor(name).shape)}" for name in has)
    steps, batch = site.adjoints.order.steps, site.adjoints.order.batch
    counted = f"{steps} step{'' if steps == 1 else 's'}, {batch} sequence{'' if batch == 1 else 's'}"
    return f"<{info.site} ({info.cell}): {counted}; adjoints {listed or 'none'}>"
