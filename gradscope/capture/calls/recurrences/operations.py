"""Names of autograd nodes by what they do to a state: rearrange it, multiply it, take it apart, add it up."""

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

# What a sum over timesteps is made of.
ADDS = (
    *("AddBackward", "SubBackward", "ViewBackward", "SumBackward", "MeanBackward", "SqueezeBackward", "CloneBackward"),
    *("CopySlices", "IndexPutBackward", "SelectScatterBackward", "SliceScatterBackward", "CatBackward"),
)
