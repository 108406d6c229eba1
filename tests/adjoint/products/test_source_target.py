from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradscope.adjoint import stack_adjoints
from gradscope.adjoint.products.source_target import Targets, source_target_norms
from tests.adjoint.linearized import golden_call, jacobian_files
from tests.golden_files import Golden


def _targets(golden: Golden, chosen: range) -> Targets:
    """L_t = sum(output[t] · R_out[t]) for each t in ``chosen``."""
    weight = golden.tensor("R_out")
    direct = torch.zeros(*weight.shape[:2], len(chosen), weight.shape[2], dtype=weight.dtype)
    for n, t in enumerate(chosen):
        direct[t, :, n] = weight[t]
    return Targets(direct)


@pytest.mark.parametrize("path", jacobian_files(), ids=lambda path: path.stem)
def test_norms_equal_reference(path: Path) -> None:
    golden = Golden.load(path)
    call = golden_call(golden)
    hidden, cell, _ = source_target_norms(call, stack_adjoints(call), (0, 0), _targets(golden, range(12)))
    torch.testing.assert_close(hidden.mean(2), golden.tensor("src_tgt_h"), rtol=1e-10, atol=1e-12)
    assert (cell is not None) == ("src_tgt_c" in golden.data)
    if cell is not None:
        torch.testing.assert_close(cell.mean(2), golden.tensor("src_tgt_c"), rtol=1e-10, atol=1e-12)
    assert bool((hidden.permute(2, 0, 1).triu(1) == 0).all())


def test_targets_in_chunks_give_the_same_rows() -> None:
    golden = Golden.load(jacobian_files()[0])
    call = golden_call(golden)
    sites = stack_adjoints(call)
    whole = source_target_norms(call, sites, (0, 0), _targets(golden, range(12)))[0]
    parts = [source_target_norms(call, sites, (0, 0), _targets(golden, range(t, t + 4)))[0] for t in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=0)


@pytest.mark.parametrize("path", [p for p in jacobian_files() if "lstm" in p.stem], ids=lambda path: path.stem)
def test_a_target_on_the_final_states_gives_the_same_adjoints_as_the_stack(path: Path) -> None:
    golden = Golden.load(path)
    call = golden_call(golden)
    final_h, final_c = torch.randn_like(call.h0), torch.randn_like(call.c0)  # type: ignore[arg-type]
    targets = Targets(torch.zeros_like(call.output)[:, :, None], final_h[:, :, None], final_c[:, :, None])
    hidden, cell, _ = source_target_norms(call, stack_adjoints(call), (0, 0), targets)
    state = final_h.clone().requires_grad_(), final_c.clone().requires_grad_()
    assert cell is not None
    # At the last step nothing but the direct gradients is there: h_n's own, and c_n's plus what h_n sends to c_n.
    torch.testing.assert_close(hidden[0, -1], torch.linalg.vector_norm(state[0][0].detach(), dim=1))
    x, h0, c0 = golden.tensor("x"), golden.tensor("h0").requires_grad_(), golden.tensor("c0").requires_grad_()
    _, (h_n, c_n) = golden.module()(x[:6], (h0, c0))
    # Restarted at step 6 with separate states, torch's own layer gives ∂L/∂h_5.
    h_5 = h_n.detach().requires_grad_()
    _, (h_n, c_n) = golden.module()(x[6:], (h_5, c_n.detach()))
    (expected,) = torch.autograd.grad((h_n * final_h).sum() + (c_n * final_c).sum(), h_5)
    torch.testing.assert_close(hidden[0, 5], torch.linalg.vector_norm(expected[0], dim=1), rtol=1e-10, atol=1e-12)
