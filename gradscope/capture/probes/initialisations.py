"""Which initialisations fit a site, what they would put into its parameters, and the code that does it for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.capture.host import brought
from gradscope.capture.layers.discovery import Target, as_seen, unwrapped
from gradscope.schema import SiteInfo

#: New values of some parameters, drawn with a generator.
Values = Callable[[torch.Generator], dict[nn.Parameter, Tensor]]

JOZEFOWICZ = "Jozefowicz et al. 2015"
TALLEC = "Tallec & Ollivier 2018"
WESTHUIZEN = "Tallec & Ollivier 2018; van der Westhuizen & Lasenby 2018"
LE = "Le et al. 2015"
SAXE = "Saxe et al. 2014"

GATES_UNKNOWN = "which of its parameters are gates cannot be told from data flow"

#: Names of gates that keep the state, of every cell with gates.
KEEPING = ("f", "z")
#: A shorter sequence has no range of timescales for the chrono initialisation to spread over.
MIN_CHRONO = 3


@dataclass(frozen=True, eq=False)
class Initialisation:
    """An initialisation of one site.

    Attributes
    ----------
    name, site, source : str
    values : callable
    code : str
        Python that does the same to ``model``, to copy.
    random : bool
        Whether another draw is another initialisation.
    """

    name: str
    site: str
    source: str
    values: Values
    code: str
    random: bool = False


@dataclass(frozen=True)
class NotTried:
    """An initialisation that does not fit a site, or could not be measured there, and why."""

    site: str
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Weights:
    """The parameters of a site whose roles are known.

    Attributes
    ----------
    hidden : tuple of nn.Parameter
        Recurrent weights, (k·H, H) each.
    biases : tuple of nn.Parameter
        Of the input and of the state (G·H,); empty without.
    names : mapping of Parameter to str
        As an expression of Python, from ``model`` on.
    lacks : str
        Why there is no recurrent weight to speak of.
    """

    hidden: tuple[nn.Parameter, ...]
    biases: tuple[nn.Parameter, ...]
    names: Mapping[nn.Parameter, str]
    lacks: str = ""


def fitting(
    model: nn.Module, target: Target | None, info: SiteInfo, length: int
) -> tuple[list[Initialisation], list[NotTried]]:
    """Return what fits a site, and what does not, with the reason.

    Parameters
    ----------
    model : nn.Module
    target : Target or None
        None for a recurrence that was found in the graph.
    info : SiteInfo
    length : int
        Steps of the sequence, T.
    """
    if target is not None and target.kind == "layer":
        reason = f"the roles of the parameters of {info.module_class} are not known"
        return [], [NotTried(info.site, "any", reason)]
    weights = _of_layer(model, target, info) if target is not None else _of_found(model, info)
    made = _Made(info, weights, length)
    if made.keep:
        # In PyTorch's GRU, h' = (1 - z) n + z h: z keeps the old state, so a positive bias preserves.
        name = "forget bias 1" if made.keep == "f" else "update bias 1"
        made.forget_gate(name)
        made.chrono()
        made.orthogonal()
        made.both(name, "orthogonal")
    else:
        made.orthogonal()
        made.unit_radius()
        if info.cell in ("rnn_tanh", "rnn_relu"):
            made.identity()
        else:
            made.leave_out("forget bias, chrono, identity", GATES_UNKNOWN)
    return made.fitting, made.left_out


class _Made:
    """Collects what fits a site."""

    def __init__(self, info: SiteInfo, weights: Weights, length: int) -> None:
        self._info, self._weights, self._length = info, weights, length
        #: The gate that keeps the state, empty where none is known to.
        self.keep = next((gate for gate in KEEPING if gate in info.gates), "")
        self.fitting: list[Initialisation] = []
        self.left_out: list[NotTried] = []

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out.append(NotTried(self._info.site, name, reason))

    def _add(self, name: str, source: str, values: Values, code: Sequence[str], random: bool = False) -> None:
        text = "\n".join(["with torch.no_grad():", *(f"    {line}" for line in code)])
        self.fitting.append(Initialisation(name, self._info.site, source, values, text, random))

    def forget_gate(self, name: str) -> None:
        """Set the bias of the gate that keeps the state to 1 in all."""
        if not self._weights.biases:
            return self.leave_out(name, "it has no bias vectors that are parameters of its own")
        of_input, of_state = self._weights.biases
        gate, at = self._gate(self.keep)

        def values(_: torch.Generator) -> dict[nn.Parameter, Tensor]:
            return {of_input: _filled(of_input, gate, 1.0), of_state: _filled(of_state, gate, 0.0)}

        names = self._weights.names
        code = [f"{names[of_input]}[{at}] = 1.0", f"{names[of_state]}[{at}] = 0.0  # PyTorch adds the two"]
        return self._add(name, JOZEFOWICZ, values, code)

    def chrono(self) -> None:
        """Spread the timescales up to T: b_f ~ log U[1, T − 1], and b_i = −b_f where the input gate is its own."""
        name = f"chrono({self._length})"
        if not self._weights.biases:
            return self.leave_out(name, "it has no bias vectors that are parameters of its own")
        if self._length < MIN_CHRONO:
            return self.leave_out(name, f"a sequence of {self._length} steps has no range of timescales")
        of_input, of_state = self._weights.biases
        (keep, at), high = self._gate(self.keep), self._length - 1.0
        writes = "i" in self._info.gates
        write, at_write = self._gate("i") if writes else (slice(0), "")

        def values(generator: torch.Generator) -> dict[nn.Parameter, Tensor]:
            drawn = torch.empty(keep.stop - keep.start, device="cpu").uniform_(1.0, high, generator=generator).log()
            new = {of_input: _filled(of_input, keep, drawn), of_state: _filled(of_state, keep, 0.0)}
            if writes:
                new[of_input][write] = -drawn.to(of_input)
                new[of_state][write] = 0.0
            return new

        names = self._weights.names
        code = [
            f"spread = torch.empty({keep.stop - keep.start}).uniform_(1.0, {high}).log()",
            f"{names[of_input]}[{at}], {names[of_state]}[{at}] = spread, 0.0",
        ]
        if writes:
            code.append(f"{names[of_input]}[{at_write}], {names[of_state]}[{at_write}] = -spread, 0.0")
        return self._add(name, TALLEC if writes else WESTHUIZEN, values, code, random=True)

    def orthogonal(self) -> None:
        """Make every H × H block of the recurrent weights orthogonal."""
        weights = self._weights.hidden
        if not weights:
            return self.leave_out("orthogonal", self._weights.lacks)

        def values(generator: torch.Generator) -> dict[nn.Parameter, Tensor]:
            return {weight: _orthogonal(weight, generator) for weight in weights}

        code = []
        for weight in weights:
            name, (rows, size) = self._weights.names[weight], weight.shape
            drawn = f"torch.nn.init.orthogonal_(torch.empty({size}, {size}, dtype=torch.float64))"
            if rows == size:
                code.append(f"{name}.copy_({drawn})")
            else:
                code += [f"for block in {name}.split({size}):", f"    block.copy_({drawn})"]
        return self._add("orthogonal", SAXE, values, code, random=True)

    def unit_radius(self) -> None:
        """Scale the recurrent weight so that its largest eigenvalue has a magnitude of 1."""
        name, weights = "spectral radius 1", self._weights.hidden
        if len(weights) != 1 or weights[0].shape[0] != weights[0].shape[1]:
            reason = self._weights.lacks or "it has no single square recurrent weight"
            return self.leave_out(name, reason)
        (weight,) = weights

        def values(_: torch.Generator) -> dict[nn.Parameter, Tensor]:
            largest = float(torch.linalg.eigvals(brought(weight).double()).abs().max())
            return {weight: weight.detach() / largest}

        at = self._weights.names[weight]
        code = [f"{at}.div_(torch.linalg.eigvals({at}.double()).abs().max())"]
        return self._add(name, "Pascanu et al. 2013", values, code)

    def identity(self) -> None:
        """The identity as recurrent weight, and no bias: the IRNN."""
        if not self._weights.hidden:
            return self.leave_out("identity", self._weights.lacks)
        (weight,), biases, names = self._weights.hidden, self._weights.biases, self._weights.names

        def values(_: torch.Generator) -> dict[nn.Parameter, Tensor]:
            eye = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
            return {weight: eye, **{bias: torch.zeros_like(bias) for bias in biases}}

        code = [f"torch.nn.init.eye_({names[weight]})", *(f"{names[bias]}.zero_()" for bias in biases)]
        return self._add("identity", LE, values, code)

    def both(self, first: str, second: str) -> None:
        """Two at once, where both fit; they are of different parameters."""
        parts = [one for one in self.fitting if one.name in (first, second)]
        if len(parts) < 2:
            return

        def values(generator: torch.Generator) -> dict[nn.Parameter, Tensor]:
            return parts[0].values(generator) | parts[1].values(generator)

        lines = [line.removeprefix("    ") for one in parts for line in one.code.splitlines()[1:]]
        self._add(f"{first} + {second}", "; ".join(one.source for one in parts), values, lines, random=True)

    def _gate(self, gate: str) -> tuple[slice, str]:
        """The rows of a gate in the cell's order (i, f, g, o; r, z, n), and how they are written."""
        number, size = self._info.gates.index(gate), self._info.hidden_size
        rows = slice(number * size, (number + 1) * size)
        return rows, f"{rows.start or ''}:{rows.stop}"


def _filled(parameter: nn.Parameter, rows: slice, value: Tensor | float) -> Tensor:
    new = parameter.detach().clone()
    new[rows] = value if isinstance(value, float) else value.to(new)
    return new


def _orthogonal(weight: nn.Parameter, generator: torch.Generator) -> Tensor:
    """Orthogonal blocks, drawn on the CPU in float64: a QR decomposition in half precision does not exist."""
    size = weight.shape[1]
    blocks = [
        nn.init.orthogonal_(torch.empty(size, size, dtype=torch.float64, device="cpu"), generator=generator)
        for _ in range(weight.shape[0] // size)
    ]
    return torch.cat(blocks).to(weight)


# --- which parameters ------------------------------------------------------------------------------------------------


def _of_layer(model: nn.Module, target: Target, info: SiteInfo) -> Weights:
    """Of a layer or cell of torch's."""
    suffix = f"_l{info.layer}{'_reverse' if info.reverse else ''}" if target.kind == "fused" else ""
    module, path = target.module, _expression(model, target.module)
    found = {name: module._parameters.get(f"{name}{suffix}") for name in ("weight_hh", "bias_ih", "bias_hh")}
    names = {p: f"{path}.{name}{suffix}" for name, p in found.items() if p is not None}
    weight, lacks = found["weight_hh"], ""
    if weight is None:
        lacks = "its recurrent weight is computed from other parameters (parametrised or dropped)"
    elif info.proj_size:
        lacks = "its recurrent weight acts on the projected state and is not square"
    biases = tuple(p for p in (found["bias_ih"], found["bias_hh"]) if p is not None)
    return Weights(
        (weight,) if weight is not None and not lacks else (), biases if len(biases) == 2 else (), names, lacks
    )


def _of_found(model: nn.Module, info: SiteInfo) -> Weights:
    """Of a recurrence that was found: the weights that are used again on what they made, where they fit the state."""
    own = unwrapped(model)
    known = {as_seen(name): (name, parameter) for name, parameter in own.named_parameters()}
    paths = [known[path] for path in info.weights if path in known]
    size = info.hidden_size
    matrices = [(name, p) for name, p in paths if p.dim() == 2]
    fits = [(name, p) for name, p in matrices if size and p.shape[1] == size and p.shape[0] % size == 0]
    if not matrices or len(fits) < len(matrices) or not size:
        return Weights((), (), {}, "no weight of it is known to map its state, and its state alone, to itself")
    return Weights(tuple(p for _, p in fits), (), {p: _attribute(own, name) for name, p in fits})


def _expression(model: nn.Module, module: nn.Module) -> str:
    """The module as an expression of Python, from ``model`` on."""
    path = next(name for name, one in unwrapped(model).named_modules() if one is module)
    parts = path.split(".") if path else []
    if all(part.isidentifier() for part in parts):
        return ".".join(["model", *parts])
    return f'model.get_submodule("{path}")'


def _attribute(model: nn.Module, name: str) -> str:
    """The parameter as an expression of Python."""
    owner, _, own = name.rpartition(".")
    return f"{_expression(model, model.get_submodule(owner))}.{own}"
