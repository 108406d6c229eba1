"""Names of autograd nodes by what they do to a state: rearrange it, multiply it, take it apart, add it up."""

from __future__ import annotations

from typing import Any

#: Operations that rearrange a tensor without computing anything: a state is looked for below them.
REARRANGES = (
    *("CatBackward", "ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "TransposeBackward", "TBackward"),
    *("PermuteBackward", "SqueezeBackward", "UnsqueezeBackward", "ExpandBackward", "CloneBackward", "ToCopyBackward"),
    *("SelectBackward", "SliceBackward", "UnbindBackward", "SplitBackward", "SplitWithSizesBackward", "ChunkBackward"),
    *("AliasBackward", "NativeDropoutBackward", "IndexSelectBackward", "IndexBackward", "AsStridedBackward"),
    *("NarrowBackward", "StackBackward", "ContiguousBackward"),
)

# Products with a weight: where a state enters one of these, it is the hidden state.
PRODUCTS = ("Mm", "Addmm", "Bmm", "Baddbmm", "Linear", "Convolution", "Mv", "Addmv", "Dot", "Addbmm", "Embedding")

SLICES = ("SelectBackward", "UnbindBackward", "SliceBackward", "SplitBackward", "SplitWithSizesBackward", "Narrow")


def slice_of(node: Any) -> tuple[object, ...] | None:
    """Return which slice a node takes, as torch saved it; None where that cannot be told."""
    try:
        return node._saved_dim, node._saved_index
    except AttributeError:
        pass
    try:
        return node._saved_dim, node._saved_start, node._saved_end, node._saved_step
    except AttributeError:
        return None


# What a sum over timesteps is made of.
ADDS = (
    *("AddBackward", "SubBackward", "ViewBackward", "SumBackward", "MeanBackward", "SqueezeBackward", "CloneBackward"),
    *("CopySlices", "IndexPutBackward", "SelectScatterBackward", "SliceScatterBackward", "CatBackward"),
)
