"""Names of everything a run holds, in memory and on disk. Standard library only.

A *record* is what one optimizer step (or micro-batch) left behind. Its arrays are named here together
with their dimensions, so that the recorder, the store and the readers cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SCHEMA = "gradscope-run"
SCHEMA_VERSION = "1.2"

#: Group names at the top of every HDF5 segment or packed file.
SITES_GROUP = "sites"  # sites/<module path>/<suffix>: one group per site
STEPS_GROUP = "steps"  # scalars of every optimizer step
CLIPS_GROUP = "clips"  # one row per clipping call
PARAMETERS_GROUP = "parameters"  # per-parameter gradient norms of recorded steps


@dataclass(frozen=True)
class Quantity:
    """One thing that can be recorded at a site.

    Attributes
    ----------
    name : str
        What a user passes in ``quantities=``.
    symbol : str
        Mathematical symbol, in matplotlib's mathtext without the dollar signs.
    description : str
        One line for labels and documentation.
    datasets : mapping of str to tuple of str
        Dataset name to its dimensions after ``step``.
    tensor : tuple of str or None
        Dimensions of the full tensor, stored as ``<name>_tensor`` with ``tensors=True``.
    """

    name: str
    symbol: str
    description: str
    datasets: Mapping[str, tuple[str, ...]]
    tensor: tuple[str, ...] | None = None


_PER_LAG = ("sequence", "lag")

#: Most states of one recurrence that are recorded by number, where hidden and cell cannot be told.
MAX_STATES = 8

#: What the numbered states are called.
STATES = tuple(f"state_{k}" for k in range(1, MAX_STATES + 1))


def _norm(name: str, symbol: str, description: str, tensor: tuple[str, ...]) -> Quantity:
    return Quantity(name, symbol, description, {name: _PER_LAG}, (*_PER_LAG, *tensor))


QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        _norm("hidden", r"\partial L/\partial h_t", "adjoint of the hidden state", ("unit",)),
        _norm("cell", r"\partial L/\partial c_t", "adjoint of the cell state (total)", ("unit_cell",)),
        _norm(
            "cell_carry",
            r"\partial L/\partial c_t|_{h_t}",
            "adjoint of the cell state with h_t held fixed",
            ("unit_cell",),
        ),
        _norm("input", r"\partial L/\partial x_t", "gradient of the input through this site", ("feature",)),
        Quantity(
            "gates",
            r"\partial L/\partial a_t",
            "adjoint of the gate pre-activations, one norm per gate",
            {"gates": ("sequence", "gate", "lag")},
            ("sequence", "lag", "gate_unit"),
        ),
        _norm("direct", r"\partial L/\partial h_t|_{direct}", "direct gradient at h_t, not an adjoint", ("unit",)),
        Quantity(
            "weight",
            r"\|\partial L/\partial W_{hh}\|_t",
            "norm of the timestep's contribution to the recurrent weight gradient",
            {"weight": ("time",)},
        ),
        *(
            _norm(f"state_{k}", rf"\partial L/\partial s^{{({k})}}_t", f"adjoint of state {k}", (f"unit_state_{k}",))
            for k in range(1, MAX_STATES + 1)
        ),
        Quantity(
            "recurrent",
            r"\partial L/\partial h_t|_{recurrent}",
            "part of the adjoint of h_t that came through the recurrence (hidden minus direct)",
            {"recurrent": _PER_LAG},
        ),
        Quantity(
            "cell_path",
            r"\partial L/\partial c_t|_{cell path}",
            "adjoint of the cell state along the cell path only (h detached between steps)",
            {"cell_path": _PER_LAG},
        ),
        Quantity(
            "consistency",
            r"\overline{\cos}(\delta_t)",
            "mean pairwise cosine of the gate adjoints over the sampled sequences",
            {"consistency": ("lag",)},
        ),
        Quantity(
            "activations",
            r"\sigma(a_t)",
            "gate activations: mean and retention time per unit, saturated shares per gate",
            {
                "gate_mean": ("gate", "unit_cell"),
                # mean of ln(gate): the timescale of a forget gate is -1 / gate_log_mean
                "gate_log_mean": ("gate", "unit_cell"),
                "gate_low": ("gate",),
                "gate_high": ("gate",),
            },
        ),
    )
}

#: What ``record`` keeps when ``quantities`` is not given (``cell`` only where there is one). ``direct`` tells whether a
#: curve is the decay of one loss or the sum over losses at many timesteps.
DEFAULT_QUANTITIES = ("hidden", "cell", "input", "direct")

#: Every dataset a site group may hold (norm arrays), with its dimensions after ``step``.
DATASETS: dict[str, tuple[str, ...]] = {
    name: dims for quantity in QUANTITIES.values() for name, dims in quantity.datasets.items()
} | {f"{quantity.name}_tensor": quantity.tensor for quantity in QUANTITIES.values() if quantity.tensor}


# Computed from gates and weights, not from what arrives at a state.
_OF_EQUATIONS = ("cell_carry", "gates", "weight", "cell_path", "consistency", "activations")


@dataclass(frozen=True)
class SiteInfo:
    """What is known of a site before anything is recorded there.

    Attributes
    ----------
    site : str
        Module path + stack level + direction, e.g. ``encoder.lstm/l1_reverse``.
    module, module_class : str
        Path and class name of the module the site belongs to.
    cell : str
        ``rnn_tanh``, ``rnn_relu``, ``lstm``, ``gru``, or the class name of a custom cell.
    layer : int
    reverse : bool
    input_size, hidden_size, proj_size : int
        0 where unknown.
    gates : tuple of str
        Gate names in PyTorch's order; ``()`` for a cell without known gates.
    curve : str
        The quantity whose decay describes the site: ``cell`` for an LSTM, ``input`` for a black box, else ``hidden``.
    call : int
        1 for the first use of the module in a step; a second use is its own site, suffixed ``#2``.
    how : str
        How a site was found that no class told of: by data flow, in how many steps.
    weights : tuple of str
        Paths of the parameters that recur in it, the largest first, where it was found by them.
    """

    site: str
    module: str
    module_class: str
    cell: str
    layer: int = 0
    reverse: bool = False
    input_size: int = 0
    hidden_size: int = 0
    proj_size: int = 0
    gates: tuple[str, ...] = ()
    curve: str = "hidden"
    call: int = 1
    how: str = ""
    weights: tuple[str, ...] = ()

    def lacks(self, quantity: str) -> str:
        """Return why no recording can hold a quantity at this site; empty where one may."""
        if self.how and quantity in _OF_EQUATIONS:
            return f"it follows from the equations of a layer, which are not known here ({self.how})"
        return ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SiteInfo:
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        for name in ("gates", "weights"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


def in_order(sites: Iterable[str]) -> list[str]:
    """Sites as given, every further use of a module (``rnn/l0#2`` ... ``rnn/l0#10``) after the ones before it."""
    named = [(*site.partition("#"), site) for site in sites]
    place: dict[str, int] = {}
    for base, *_ in named:
        place.setdefault(base, len(place))
    return [site for *_, site in sorted(named, key=lambda one: (place[one[0]], int(one[2]) if one[2].isdigit() else 0))]


@dataclass(frozen=True)
class Coverage:
    """Whether a module or site was seen, and if not, why.

    ``status`` is ``recorded``, ``partial`` or ``missing``; ``reason`` is empty for ``recorded``; ``count`` is the
    number of recorded steps it applies to.
    """

    site: str
    status: str
    reason: str = ""
    count: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class SiteRecord:
    """One record's arrays at one site.

    Attributes
    ----------
    lengths : ndarray of int32, shape (b,)
        Length of each sampled sequence.
    rows : ndarray of int32, shape (b,)
        Which batch row each sampled sequence was.
    smallest_normal : float
        Smallest normal number of the arithmetic the norms come from; below it a norm has lost precision.
    arrays : dict of str to ndarray
        Dataset name (a key of ``DATASETS``) to float array with those dimensions. NaN beyond a sequence's length.
    nonfinite : int
        Number of sampled sequences with any non-finite value.
    carried : int
        Steps of the same sequence before the first of these (earlier windows, an encoder); −1 where unknown.
    after : int
        Steps of the same sequence after the last of these, in other layers: lags count from there.
    """

    lengths: np.ndarray
    rows: np.ndarray
    smallest_normal: float
    arrays: dict[str, np.ndarray]
    nonfinite: int = 0
    carried: int = 0
    after: int = 0


@dataclass(frozen=True, eq=False)
class Record:
    """What one backward pass of a step left behind.

    ``micro`` counts the passes whose gradients were accumulated in the same parameters for the update, from 0; passes
    that did not feed it have another ``role`` and count -1, -2 ... ``skipped`` marks a step whose update was not
    carried out. ``parameters`` are per-parameter gradient norms before clipping, else as the optimizer saw them.
    ``loss_scale`` has been divided out.
    """

    step: int
    micro: int
    time: float
    sites: dict[str, SiteRecord]
    parameters: dict[str, float] = field(default_factory=dict)
    loss_scale: float = 1.0
    skipped: bool = False
    role: int = 0


#: What became of a backward pass, by ``Record.role``: it fed the update; its gradient was zeroed before any update; it
#: was another loss's (it left no gradient in the site's parameters, or one that another optimizer's step was about); a
#: closure was evaluated once more within the same step.
ROLES = ("update", "dropped", "other", "evaluation")


@dataclass(frozen=True)
class StepRow:
    """Scalars of one optimizer step (recorded or not): ``loss``, ``grad_norm`` and whatever was logged."""

    step: int
    time: float
    scalars: dict[str, float]


CLIP_KINDS = ("norm", "value", "adaptive", "timestep")

#: Where a clipping call stood: on the gradient that the update used; on a partial sum, to which a later pass added;
#: before any pass; after the update; on a gradient that was zeroed before any update; in a step that was skipped.
CLIP_PLACES = ("update", "partial", "before", "after", "dropped", "skipped")


@dataclass(frozen=True)
class ClipEvent:
    """One clipping call; of those by value only what is in recorded steps, for their norms are not free.

    ``kind`` is one of ``CLIP_KINDS``. ``norm_type`` is NaN where a script's own call used another norm than the
    2-norm. ``norm_before`` and ``norm_after`` are total 2-norms (or the ``norm_type``
    that was asked for); ``scale`` is their ratio as applied; ``cosine`` between raw and clipped gradient is NaN where
    it was not measured (it is 1 by construction for norm clipping); ``clipped`` is the share of elements (value),
    rows (adaptive) or the whole (norm: 0 or 1) that was changed.

    Norms are in true units: ``loss_scale``, the factor by which the gradients were still multiplied, has been divided
    out of them; the threshold is the one that was passed. ``place`` is one of ``CLIP_PLACES``, empty in runs of before
    format 1.1; ``effective`` is 1 where the update used the clipped gradient. ``passes`` counts the passes in the
    gradient, ``applied`` is the norm of the same parameters as the update saw it (NaN where that was not measured),
    ``part`` names the parameters where they are not all that are trained. ``foreach`` is -1 where it was not said.
    ``overflow`` is 1 where finite gradients had a norm that is not, so that clipping set them to 0.
    """

    step: int
    kind: str
    threshold: float
    norm_before: float
    norm_after: float
    scale: float
    cosine: float
    clipped: float
    norm_type: float = 2.0
    parameters: int = 0  # number of parameter tensors in the call
    place: str = ""
    effective: int = 1
    passes: int = 0
    applied: float = float("nan")
    loss_scale: float = 1.0
    foreach: int = -1
    overflow: int = 0
    part: str = ""


@dataclass(frozen=True)
class RunMeta:
    """What is written once, when a run begins.

    ``settings`` are the arguments of ``record``; ``model`` describes the model (class, parameter count, text);
    ``environment`` holds versions. All must be JSON.
    """

    created_at: str
    gradscope_version: str
    torch_version: str
    settings: dict[str, Any]
    model: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    rank: int = 0
    world_size: int = 1
