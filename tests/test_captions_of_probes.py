"""What figures of a model itself say of it: which steps a loss looks at, one backward pass of autograd per loss."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.plots import connectivity, evidence, remedies, source_target, whatif
from gradscope.words import number
from tests.recordings import RECORDINGS, Loop, Net
from tests.unrolled import unroll

T, B = 12, 4
RAGGED = torch.tensor([T, 9, 7, 4])
LOSSES = (0, 5, T - 1)
#: Those whose layers are torch's own, in one module.
NETS = [name for name, of in RECORDINGS.items() if isinstance(of.make(), Net)]


def made(name: str) -> tuple[nn.RNNBase, Tensor, bool]:
    torch.manual_seed(RECORDINGS[name].seed)
    net = RECORDINGS[name].make()
    return net.core.double(), torch.randn(T, B, 2, dtype=torch.float64), net.packed


def losses_of(core: nn.RNNBase, x: Tensor, packed: bool) -> Tensor:
    """One loss a timestep."""
    out = pad_packed_sequence(core(pack_padded_sequence(x, RAGGED))[0])[0] if packed else core(x)[0]
    return (out.sin() ** 2).sum((1, 2))


def looked_at(core: nn.RNNBase, x: Tensor, packed: bool, site: str) -> dict[str, np.ndarray]:
    """Norm of the gradient of each of LOSSES with respect to every step's state and input, mean over the sequences."""
    unrolled = unroll(core, x, RAGGED if packed else None)
    found: dict[str, list[np.ndarray]] = {}
    for t in LOSSES:
        unrolled.differentiate((unrolled.output.sin() ** 2).sum((1, 2))[t])
        for quantity in ("input", "hidden", "cell"):
            if quantity in unrolled.sites[site].gradients:
                norms = torch.linalg.vector_norm(unrolled.sites[site].gradients[quantity], dim=2).numpy()
                if packed:  # a sequence that is over has no such step
                    norms[np.arange(T)[:, None] >= RAGGED.numpy()] = np.nan
                found.setdefault(quantity, []).append(np.nanmean(norms, axis=1))
    return {quantity: np.array(rows) for quantity, rows in found.items()}


@pytest.mark.parametrize("name", NETS)
def test_the_steps_a_loss_looks_at_most_are_those_of_autograd(name: str) -> None:
    core, x, packed = made(name)
    told: Counter[str] = Counter()
    for suffix in ("l0", "l0_reverse")[: 1 + core.bidirectional]:
        site = f"model/{suffix}"
        measured = gradscope.source_target(core, lambda: losses_of(core, x, packed), site=site)
        expected = looked_at(core, x, packed, suffix)
        for quantity, rows in expected.items():
            tokens = [f"w{s}" for s in range(T)]
            said = connectivity.caption(connectivity.table(measured, targets=LOSSES, quantity=quantity, tokens=tokens))
            assert (
                f"∂L/∂{ {'input': 'x', 'hidden': 'h', 'cell': 'c'}[quantity] }_s at {site} at each source step" in said
            )
            most = said.partition("Most: ")[2].removesuffix(".").split("; ")
            assert len(most) == len(LOSSES)
            for t, own, words in zip(LOSSES, rows, most, strict=True):
                order = np.argsort(-own, kind="stable")[:3]
                order = order[own[order] > 0]
                each = ", ".join(f"{s} (w{s}) {number(100 * own[s] / np.nansum(own))} %" for s in order)
                assert words == f"the loss at {t}: {each or 'nothing arrives'}"
                told["nothing" if not each else "some"] += 1
        said = source_target.caption(source_target.table(measured))
        assert f"each of {T} losses (rows)" in said
        assert f"each of {T} source steps." in said
        # The loss in the middle tells on which side of it no source matters; below another layer both may.
        before, behind = (np.nansum(rows[LOSSES.index(5)][part]) > 0 for part in (slice(5), slice(6, None)))
        assert ("Sources after their target cannot matter" in said) == (not behind)
        assert ("runs backwards: sources before their target" in said) == (not before)
    assert told["some"]


def test_a_loss_that_looks_at_nothing_and_many_losses_are_said() -> None:
    gru, x = nn.GRU(2, 3).double(), torch.randn(8, 2, 2, dtype=torch.float64)

    def losses() -> Tensor:
        each = gru(x)[0].pow(2).sum((1, 2))
        return torch.cat([each[:1] * 0, each[1:]])

    measured = gradscope.source_target(gru, losses)
    said = connectivity.caption(connectivity.table(measured, targets=range(8)))
    assert "Most: the loss at 0: nothing arrives; the loss at 1: " in said
    assert said.endswith("; and 4 more.")


@pytest.mark.parametrize("name", NETS)
def test_the_caption_of_clipping_at_every_timestep_counts_lags_and_sequences(name: str) -> None:
    core, x, packed = made(name)
    measured = gradscope.clip_whatif(
        core, lambda: losses_of(core, x, packed)[-1], [np.inf, 0.01, 1e-4], site="model/l0", samples=3
    )
    said = whatif.caption(whatif.table(measured))
    lags, sequences = re.search(r"lags 0 to (\d+), geometric mean over up to (\d+) sequences", said).groups()
    curves = np.array(measured.curves)
    assert int(lags) == T - 1
    assert int(sequences) == int((np.isfinite(curves) & (curves > 0)).sum(1).max()) <= 3
    assert "to ± 0.01, 0.0001;" in said
    unclipped = whatif.caption(
        whatif.table(gradscope.clip_whatif(core, lambda: losses_of(core, x, packed)[-1], [np.inf], site="model/l0"))
    )
    assert "to ± nothing;" in unclipped


def test_draws_and_seeds_are_counted() -> None:
    import pandas as pd

    gru, x = nn.GRU(2, 3), torch.randn(8, 2, 2)
    tried = gradscope.remedies(gru, lambda: gru(x)[0][-1].pow(2).sum(), draws=3)
    assert "geometric means of up to 3 draws" in remedies.caption(remedies.table(tried))
    assert "(2 seeds)" in evidence.caption(pd.DataFrame({"seed": [0, 1, 0, 1]}))


def test_a_loop_has_no_equations_to_follow() -> None:
    with pytest.raises(gradscope.errors.NothingToRecordError):
        gradscope.source_target(Loop(), lambda: Loop()(torch.randn(T, 8, 2)).sum())
