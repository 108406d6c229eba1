"""Which sequences of a batch are recorded, and how they are taken out of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gradscope.capture import host


def sampled_rows(batch: int, samples: int | None) -> list[int] | None:
    """Return ``samples`` batch rows, evenly spaced, or None for all of them.

    Evenly spaced rather than the first ones: a batch sorted by length would otherwise give its longest sequences.
    """
    if samples is None or batch <= samples:
        return None
    return [(2 * i + 1) * batch // (2 * samples) for i in range(samples)]


@dataclass(frozen=True)
class Selection:
    """Take rows out of time-major, batch-first, unbatched or packed tensors, always as (T, b, ...), to the host.

    What comes from another device has been begun to be copied only: see :mod:`~gradscope.capture.host`.

    Attributes
    ----------
    rows : Tensor of int64, shape (b,)
        Batch rows, in the order the user's code sees them.
    every_row : bool
        Whether ``rows`` is the whole batch in order, so that nothing needs gathering.
    lengths : Tensor of int64, shape (b,), or None
    batch_dim : int
        Position of the batch axis in an unpacked input.
    unbatched : bool
    gather : Tensor of int64, shape (T, b), or None
        Packed input only: position in ``PackedSequence.data`` of each step (0 on padding).
    padding : Tensor of bool, shape (T, b, 1), or None
    """

    rows: Tensor
    every_row: bool
    lengths: Tensor | None = None
    batch_dim: int = 1
    unbatched: bool = False
    gather: Tensor | None = None
    padding: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor | PackedSequence, batch_first: bool, samples: int | None) -> Selection:
        """Choose rows of the layer input ``x``."""
        if isinstance(x, PackedSequence):
            return cls._packed(x, samples)
        if x.dim() == 2:
            return cls(torch.zeros(1, dtype=torch.int64, device="cpu"), True, unbatched=True)
        batch_dim = 0 if batch_first else 1
        batch = x.shape[batch_dim]
        chosen = sampled_rows(batch, samples)
        rows = torch.arange(batch, device="cpu") if chosen is None else torch.tensor(chosen, device="cpu")
        return cls(rows, chosen is None, batch_dim=batch_dim)

    @classmethod
    def _packed(cls, x: PackedSequence, samples: int | None) -> Selection:
        sizes = x.batch_sizes  # on the host, on any device
        batch = int(sizes[0])
        chosen = sampled_rows(batch, samples)
        rows = torch.arange(batch, device="cpu") if chosen is None else torch.tensor(chosen, device="cpu")
        place = rows if x.unsorted_indices is None else host.brought(x.unsorted_indices)[rows]
        present = sizes[:, None] > place
        lengths = present.sum(0)
        steps = int(lengths.max())
        offset = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)[:-1]))
        gather = torch.where(present, offset[:, None] + place, 0)[:steps]
        return cls(
            rows,
            chosen is None,
            lengths=None if bool((lengths == steps).all()) else lengths,
            gather=gather,
            padding=~present[:steps, :, None],
        )

    def sequence(self, x: Tensor, copy: bool = True) -> Tensor:
        """Take (T, b, N) out of an input, output or gradient shaped as the module's (``.data`` when packed).

        Without ``copy`` it may share memory with ``x``.
        """
        if not host.is_host(x):
            return self._begun(x)
        if self.gather is not None:
            return x[self.gather].masked_fill_(self.padding, 0)  # type: ignore[arg-type]
        if self.unbatched or self.every_row:
            whole = x[:, None] if self.unbatched else x if self.batch_dim == 1 else x.transpose(0, 1)
            return whole.clone(memory_format=torch.contiguous_format) if copy else whole
        taken = x.index_select(self.batch_dim, self.rows)
        return taken if self.batch_dim == 1 else taken.transpose(0, 1)

    def _begun(self, x: Tensor) -> Tensor:
        """Begin to copy (T, b, N); all of a packed batch, whose rows lie apart: :meth:`settled` gathers them."""
        if self.gather is not None:
            return host.begun(x)
        if self.unbatched:
            return host.begun(x)[:, None]
        return host.rows_of(x, self.batch_dim, self.rows.tolist()).transpose(0, 1)

    def settled(self, x: Tensor) -> Tensor:
        """Return (T, b, N) of what :meth:`sequence` returned, once every copy has been waited for."""
        return x if self.gather is None or x.dim() > self.gather.dim() else self.sequence(x)

    def state(self, s: Tensor, copy: bool = True) -> Tensor:
        """Take (layers·D, b, H) out of an initial or final state or its gradient."""
        if not host.is_host(s):
            return host.begun(s)[:, None] if self.unbatched else host.rows_of(s, 1, self.rows.tolist()).transpose(0, 1)
        if self.unbatched or self.every_row:
            whole = s[:, None] if self.unbatched else s
            return whole.clone() if copy else whole
        return s.index_select(1, self.rows)

    @property
    def size(self) -> int:
        return len(self.rows)
