"""A training as it happens: steps, clipping, scaling, and what is written of them."""
