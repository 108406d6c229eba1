"""An independent reference: any stack of RNN, LSTM or GRU layers unrolled into elementary operations.

Every state, pre-activation and per-site input is a node of its own, so autograd itself gives each adjoint. Padding is
stepped over by keeping the state, sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


@dataclass
class UnrolledSite:
    """Nodes of one layer and direction, by input time; ``run`` fills ``gradients``, each (T, B, N)."""

    nodes: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, t: int, value: Tensor) -> Tensor:
        """Return ``value`` as a node of its own, to be differentiated with respect to."""
        node = value.clone()
        self.nodes.setdefault(name, {})[t] = node
        return node


@dataclass
class Unrolled:
    output: Tensor
    h_n: Tensor
    c_n: Tensor | None
    sites: dict[str, UnrolledSite]

    def differentiate(self, loss: Tensor) -> None:
        """Fill the gradients of every site."""
        places = [(s, name, t) for s in self.sites.values() for name in s.nodes for t in s.nodes[name]]
        wanted = [s.nodes[name][t] for s, name, t in places]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
        values = {(*place[1:], id(place[0])): g for place, g in zip(places, found, strict=True)}
        for site in self.sites.values():
            for name, nodes in site.nodes.items():
                steps = [values[name, t, id(site)] for t in sorted(nodes)]
                zeros = [torch.zeros_like(nodes[t]) for t in sorted(nodes)]
                site.gradients[name] = torch.stack(
                    [z if g is None else g for g, z in zip(steps, zeros, strict=True)]
                ).detach()


def unroll(
    module: nn.RNNBase,
    x: Tensor,
    lengths: Tensor | None = None,
    masks: list[Tensor] | None = None,
    detach_hidden: bool = False,
) -> Unrolled:
    """Run ``module``'s recurrence on time-major ``x`` (T, B, I) in float64, from zero states.

    ``masks`` multiply the output of each layer but the last; ``detach_hidden`` cuts h between steps.
    """
    weights = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    steps, batch = x.shape[:2]
    lengths = torch.full((batch,), steps) if lengths is None else lengths
    sites, finals = {}, []
    value = x.detach().double()
    value.requires_grad_()
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            site = sites[f"l{layer}{suffix}"] = UnrolledSite()
            own = {name: w for name, w in weights.items() if name.endswith(f"_l{layer}{suffix}")}
            own = {name.removesuffix(f"_l{layer}{suffix}"): w for name, w in own.items()}
            output, final = _scan(module, site, own, value, lengths, suffix == "_reverse", detach_hidden)
            outputs.append(output)
            finals.append(final)
        value = torch.cat(outputs, 2)
        if masks is not None and layer < module.num_layers - 1:
            value = value * masks[layer].double()
    h_n = torch.stack([h for h, _ in finals])
    c_n = torch.stack([c for _, c in finals]) if module.mode == "LSTM" else None
    return Unrolled(value, h_n, c_n, sites)


def _scan(
    module: nn.RNNBase,
    site: UnrolledSite,
    weights: dict[str, Tensor],
    x: Tensor,
    lengths: Tensor,
    reverse: bool,
    detach_hidden: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    steps, batch = x.shape[:2]
    step = _STEPS[module.mode]
    h = x.new_zeros(batch, module.proj_size or module.hidden_size)
    c = x.new_zeros(batch, module.hidden_size)
    above = h
    outputs: dict[int, Tensor] = {}
    for t in reversed(range(steps)) if reverse else range(steps):
        valid = (t < lengths)[:, None]
        x_t = site.keep("input", t, x[t])
        w_t = site.keep("weight_hh", t, weights["weight_hh"])
        previous = h.detach() if detach_hidden else h
        h_t, c_t = step(site, t, x_t, previous, c, weights, w_t)
        h_t = site.keep("hidden", t, h_t)
        direct = site.keep("direct", t, h_t)
        outputs[t] = torch.where(valid, direct, 0.0)
        above = torch.where(valid, direct, above)
        h, c = torch.where(valid, h_t, h), torch.where(valid, c_t, c)
    return torch.stack([outputs[t] for t in range(steps)]), (above, c)


def _linear(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return x @ w.t() if b is None else x @ w.t() + b


def _elman(phi: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def step(
        site: UnrolledSite, t: int, x: Tensor, h: Tensor, c: Tensor, w: Any, w_hh: Tensor
    ) -> tuple[Tensor, Tensor]:
        a = site.keep("gates", t, _linear(x, w["weight_ih"], w.get("bias_ih")) + _linear(h, w_hh, w.get("bias_hh")))
        return phi(a), c

    return step


def _lstm(site: UnrolledSite, t: int, x: Tensor, h: Tensor, c: Tensor, w: Any, w_hh: Tensor) -> tuple[Tensor, Tensor]:
    a = site.keep("gates", t, _linear(x, w["weight_ih"], w.get("bias_ih")) + _linear(h, w_hh, w.get("bias_hh")))
    i, f, g, o = a.chunk(4, 1)
    c_t = site.keep("cell", t, torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g))
    carry = site.keep("cell_carry", t, c_t)
    m = torch.sigmoid(o) * torch.tanh(c_t)
    return (m @ w["weight_hr"].t() if "weight_hr" in w else m), carry


def _gru(site: UnrolledSite, t: int, x: Tensor, h: Tensor, c: Tensor, w: Any, w_hh: Tensor) -> tuple[Tensor, Tensor]:
    rx, zx, nx = _linear(x, w["weight_ih"], w.get("bias_ih")).chunk(3, 1)
    rh, zh, nh = _linear(h, w_hh, w.get("bias_hh")).chunk(3, 1)
    first = torch.cat((rx + rh, zx + zh), 1)
    # r's pre-activation reaches n's through the product with nh, as in torch's own equations.
    a = site.keep("gates_rz", t, first)
    r, z = torch.sigmoid(a).chunk(2, 1)
    n = site.keep("gates_n", t, nx + r * nh)
    return (1 - z) * torch.tanh(n) + z * h, c


_STEPS = {
    "RNN_TANH": _elman(torch.tanh),
    "RNN_RELU": _elman(torch.relu),
    "LSTM": _lstm,
    "GRU": _gru,
}


def expected(site: UnrolledSite, quantity: str) -> Tensor:
    """The gradient that autograd gives for a quantity, (T, B, N), or (T,) for ``weight``."""
    found = site.gradients
    if quantity == "weight":
        return torch.linalg.matrix_norm(found["weight_hh"])
    if quantity == "recurrent":
        return found["hidden"] - found["direct"]
    if quantity == "gates" and "gates_n" in found:
        return torch.cat((found["gates_rz"], found["gates_n"]), 2)
    return found[quantity]


def _own_settings(module: nn.RNNBase) -> dict[str, Any]:
    if isinstance(module, nn.RNN):
        return {"nonlinearity": module.nonlinearity}
    return {"proj_size": module.proj_size} if module.proj_size else {}


def layer_by_layer(
    module: nn.RNNBase, x: Tensor | PackedSequence, lengths: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Call the layers of ``module`` one by one, with ``torch.dropout`` between them, as torch's own stack does.

    Returns the output (time-major, padded) and the dropout masks, scaled, for the same state of the generator.
    """
    masks = []
    for layer in range(module.num_layers):
        with torch.random.fork_rng(devices=[]):  # initialising the layer must not move the generator
            single = type(module)(
                x.data.shape[-1],
                module.hidden_size,
                bidirectional=module.bidirectional,
                dtype=module.weight_hh_l0.dtype,
                **_own_settings(module),
            )
        state = module.state_dict()
        single.load_state_dict({n: state[n.replace("_l0", f"_l{layer}")] for n in single.state_dict()})
        x = single(x)[0]  # with a graph: without one, oneDNN's LSTM rounds differently
        if layer == module.num_layers - 1:
            break
        data = x.data if isinstance(x, PackedSequence) else x
        dropped = torch.dropout(data, module.dropout, module.training)
        # Its derivative is the mask, also where a ReLU has made the output 0.
        mask = torch.autograd.grad(dropped.sum(), data, retain_graph=True)[0].double()
        if isinstance(x, PackedSequence):
            x = x._replace(data=dropped)
            masks.append(pad_packed_sequence(x._replace(data=mask))[0])
        else:
            x = dropped
            masks.append(mask)
    return (pad_packed_sequence(x)[0] if isinstance(x, PackedSequence) else x), masks
