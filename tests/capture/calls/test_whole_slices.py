"""What ``x[:, t]`` leaves in the graph where torch makes a node of the ``:`` too."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.capture.calls.graph import Graph, walk


def _walked(end: Tensor) -> Graph:
    graph = walk([end])
    assert graph is not None
    return graph


def _slices(end: Tensor) -> list[tuple[int, ...]]:
    graph = _walked(end)
    return [graph.shape((i, 0)) for i, name in enumerate(graph.names) if name.startswith("SliceBackward")]


def test_a_slice_that_leaves_nothing_out_is_looked_through() -> None:
    made = torch.randn(3, 4, requires_grad=True).sin()
    whole = torch.ops.aten.slice(torch.ops.aten.slice(made, 0), 1, 0, 4)
    assert whole.grad_fn.name().startswith("SliceBackward")
    end = whole.select(1, 0).exp().sum()
    assert _slices(end) == []
    assert _walked(end).names == _walked(made.select(1, 0).exp().sum()).names
    assert _walked(end).inputs == _walked(made.select(1, 0).exp().sum()).inputs


def test_one_that_leaves_something_out_is_not() -> None:
    made = torch.randn(3, 4, requires_grad=True).sin()
    for part in (made[:, :3], made[:, 1:], made[:, ::2], made[:0]):
        assert _slices(part.sum()) == [tuple(part.shape)]


def test_the_end_of_a_pass_stays() -> None:
    whole = torch.ops.aten.slice(torch.randn(3, 4, requires_grad=True).sin(), 0)
    assert _slices(whole) == [(3, 4)]


def test_one_without_an_end_takes_its_part_of_what_was_put_together() -> None:
    parts = [torch.randn(2, requires_grad=True).sin() for _ in range(2)]
    end = torch.ops.aten.slice(torch.cat(parts), 0, 2).sum()
    assert not [name for name in _walked(end).names if name.startswith(("SliceBackward", "CatBackward"))]
