"""The models of twenty recordings: what spectra and tried initialisations say of them, recomputed by plain autograd."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradscope
from gradscope.capture.probes.tried import Tried
from gradscope.errors import NothingToRecordError
from gradscope.plots import dynamics, lyapunov, spectrum
from gradscope.words import number
from tests.recordings import RECORDINGS, EncoderDecoder, Loop, Net, Raw, T
from tests.unrolled import unroll

B = 8
#: Steps of the same sequence behind those of a site: the decoder's, behind the encoder.
AFTER = {"encoder/l0": T - 25}
RAGGED = torch.tensor([T, T, T, 36, 34, 30, 28, 25])
DRAWS = 2
#: As far back as a product of Jacobians in float64 keeps what is smallest in an LSTM.
LAG = 5


def made(name: str, steps: int = T) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(RECORDINGS[name].seed)
    return RECORDINGS[name].make(), torch.randn(steps, B, 2)


def loss_of(outputs: Tensor, x: Tensor) -> Tensor:
    return (outputs - x.sum(0)[:, :1]).square().mean()


# --- gradients by autograd over written-out loops ---------------------------------------------------------------------

Laid = dict[str, dict[str, np.ndarray]]  # site -> quantity -> norms (sequence, lag); NaN beyond a sequence


def adjoints(model: nn.Module, x: Tensor) -> Laid:
    """Norms of the gradient of every state and input, in float64, by lag from the last processed step on."""
    model, x = copy.deepcopy(model).double(), x.double()
    if isinstance(model, Loop):
        h, states = torch.zeros(B, model.h2h.in_features, dtype=torch.float64), []
        for x_t in x:
            h = torch.tanh(model.i2h(x_t) + model.h2h(h))
            h.retain_grad()
            states.append(h)
        loss_of(model.out(h), x).backward()
        return {"h2h": {"hidden": np.array([h.grad.norm(dim=1).numpy() for h in reversed(states)]).T}}
    if isinstance(model, EncoderDecoder):
        kept: dict[str, list[tuple[Tensor, Tensor]]] = {"encoder/l0": [], "decoder/l0": []}
        h = torch.zeros(B, model.encoder.hidden_size, dtype=torch.float64)
        for t, x_t in enumerate(x):
            site = "encoder" if t < 25 else "decoder"
            core, x_t = getattr(model, site), x_t.clone().requires_grad_()
            h = gru_step(core)(h, x_t)
            h.retain_grad()
            kept[f"{site}/l0"].append((h, x_t))
        loss_of(model.out(h), x).backward()
        return {
            site: {
                name: np.array([pair[i].grad.norm(dim=1).numpy() for pair in reversed(pairs)]).T
                for i, name in enumerate(("hidden", "input"))
            }
            for site, pairs in kept.items()
        }
    assert isinstance(model, Net)
    lengths = RAGGED if model.packed else None
    found = unroll(model.core, x, lengths)
    last = found.output[-1] if lengths is None else found.output[lengths - 1, torch.arange(B)]
    read = {"last": last, "every": found.output, "middle": found.output[T // 2], "start": found.output[2]}[model.reads]
    found.differentiate(loss_of(model.out(read), x))
    return {
        f"core/{site}": {
            name: by_lag(at.gradients[name].norm(dim=2).numpy(), lengths, site.endswith("reverse"))
            for name in ("hidden", "cell", "input")
            if name in at.gradients
        }
        for site, at in found.sites.items()
    }


def by_lag(norms: np.ndarray, lengths: Tensor | None, reverse: bool) -> np.ndarray:
    laid = np.full(norms.T.shape, np.nan)
    for row, own, length in zip(laid, norms.T, [T] * B if lengths is None else lengths.tolist(), strict=True):
        row[:length] = own[:length] if reverse else own[:length][::-1]
    return laid


def raw(norms: np.ndarray) -> Raw:
    logs = np.full(norms.shape, np.nan)
    logs[norms > 1e-300] = np.log10(norms[norms > 1e-300])
    return Raw(np.arange(norms.shape[1]), logs, norms, np.zeros(len(norms)), None, None)


def reach(norms: np.ndarray) -> float:
    """Gradient as far as half of the sequences go, over that where it enters; 0 where most of them have none."""
    curve, last = raw(norms).curve, furthest(norms)
    entered = np.flatnonzero(np.isfinite(curve))[0]
    if (norms[:, last] < 1e-300).mean() > 0.5:
        return 0.0
    return float(10 ** (curve[last] - curve[entered]))


def furthest(norms: np.ndarray) -> int:
    """The last lag that at least half of the sequences have."""
    return int(np.flatnonzero(2 * (~np.isnan(norms)).sum(0) >= len(norms))[-1])


def geometric(values: list[float]) -> float:
    return 0.0 if min(values) == 0 else float(np.exp(np.mean(np.log(values))))


# --- what initialisations let through --------------------------------------------------------------------------------


def tried(name: str) -> tuple[nn.Module, Tensor, gradscope.Remedies]:
    model, x = made(name)
    return model, x, gradscope.remedies(model, lambda: loss_of(model(x), x), draws=DRAWS, seed=3)


def initialised(model: nn.Module, code: str, draw: int) -> nn.Module:
    changed = copy.deepcopy(model)
    torch.manual_seed(3 + draw)
    exec(code, {"model": changed, "torch": torch})
    return changed


#: By name of the recording: model, data, what was tried, and the gradients under each initialisation, draw by draw.
Bench = dict[str, tuple[nn.Module, Tensor, gradscope.Remedies, dict[str, list[Laid]]]]


@pytest.fixture(scope="module")
def bench() -> Bench:
    found = {}
    for name in RECORDINGS:
        model, x, remedies = tried(name)
        under = {"as it is": [adjoints(model, x)]}
        for one in {one.name for one in remedies.tried if one.code}:
            code = remedies.code(one)
            draws = DRAWS if "torch.empty" in code else 1
            under[one] = [adjoints(initialised(model, code, draw), x) for draw in range(draws)]
        found[name] = (model, x, remedies, under)
    return found


def test_what_tried_initialisations_let_through_is_what_autograd_gives_on_copies(bench: Bench) -> None:
    told: Counter[str] = Counter()
    for name, (_, _, remedies, under) in bench.items():
        for site in remedies.sites:
            said, here = remedies.sentence(site), [one for one in remedies.tried if one.site == site]
            quantity = here[0].quantity
            reaches = {one.name: geometric([reach(laid[site][quantity]) for laid in under[one.name]]) for one in here}
            inputs = {
                one.name: geometric([reach(laid[site]["input"]) for laid in under[one.name]])
                for one in here
                if "input" in under[one.name][0][site]
            }
            # The table: each number of each row.
            for one in here:
                told["row"] += 1
                row = next(line for line in str(remedies).partition(f"{site} (")[2].splitlines() if _is_of(line, one))
                cells = re.split(r"  +", row.strip())
                assert cells[1] == number(reaches[one.name]), (name, site, one.name)
                assert cells[2] == (number(inputs[one.name]) if one.name in inputs else "–"), (name, site, one.name)
                if cells[3] != "–":
                    halves = []
                    for fit, laid in zip(one.fits, under[one.name], strict=True):
                        low, high = (lag - AFTER.get(site, 0) for lag in fit.lag_range)
                        halves.append(-np.log10(2) / raw(laid[site][quantity]).slope(low, high).slope)
                    assert cells[3] == f"{number(np.mean(halves))} steps", (name, site, one.name)
                    told["half-life"] += 1
            if "no initialisation can be compared here" in said:
                told["alone"] += 1
                continue
            back = furthest(under["as it is"][0][site][quantity])
            steps = under["as it is"][0][site][quantity].shape[1]
            told["ragged"] += back + 1 < steps
            at = "at the first step" if back + 1 == steps else f"{back} steps back, as far as half of the sequences "
            assert f"as it is, the gradient {at}" in said
            shown = re.search(r" is (as large as|[\d.e-]+)( times| of)? ?that where it enters", said)
            assert shown is not None, said
            assert shown[1] == (number(reaches["as it is"]) if shown[2] else "as large as")
            if "∂L/∂x_t" in said:
                assert f"(∂L/∂x_t: {number(inputs['as it is'])})" in said
            away = {one: abs(np.log10(value)) if value else np.inf for one, value in reaches.items()}
            best = min(away, key=lambda one: away[one])
            if nearest := re.search(r"nearest to level of (?:the )?(\w+) initialisations? is (.+), with (\S+)$", said):
                told["nearest"] += 1
                assert nearest[2] == best
                assert nearest[3] == number(reaches[best])
                assert int(nearest[1].replace("one", "1")) == len(here) - 1
            else:
                told["as it is"] += 1
                assert re.search(r"nearer to level than with (any of|the one)", said)
                assert best == "as it is"
    assert {"row", "half-life", "alone", "nearest", "as it is", "ragged"} <= set(told), told


def _is_of(line: str, one: Tried) -> bool:
    return re.split(r"  +", line.strip())[0] == one.name and line.rstrip().endswith(one.verdict)


def test_why_an_initialisation_is_not_listed_holds(bench: Bench) -> None:
    told: Counter[str] = Counter()
    for model, _, remedies, _ in bench.values():
        for one in remedies.not_tried:
            if "the model has it already" in one.reason:
                told["has it"] += 1
                core = model.core
                if one.name == "spectral radius 1":
                    assert np.abs(np.linalg.eigvals(core.weight_hh_l0.detach().numpy())).max() == pytest.approx(1)
                else:
                    assert one.name == "forget bias 1"
                    bias = (core.bias_ih_l0 + core.bias_hh_l0).detach()
                    assert (bias[core.hidden_size : 2 * core.hidden_size] == 1).all()
            else:
                told["other"] += 1
                assert "the gradient is the same with it" not in one.reason
    assert set(told) == {"has it", "other"}, told


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_says_of_every_site_what_autograd_gives(bench: Bench) -> None:
    told: Counter[str] = Counter()
    for name, (model, x, _, under) in bench.items():
        (laid,) = under["as it is"]
        shot = gradscope.snapshot(model, functools.partial(closure, model, x))
        lines = {line.split()[1]: line for line in str(shot).splitlines()[1:]}
        for site, said in lines.items():
            quantity = re.search(r" \((\w+)\): ", said)[1]
            own, after = raw(laid[site][quantity]), AFTER.get(site, 0)
            found = re.search(
                r"reaching (\d+) steps? back is (?:as large as|([\d.e+-]+) (?:times|of)) that at "
                r"(?:the last step|lag (\d+))", said,
            )  # fmt: skip
            if found:
                told["reach"] += 1
                last, begin = int(found[1]) - after, int(found[3] or after) - after
                ratio = number(10 ** (own.value(last) - own.value(begin)))
                assert (found[2] or "1.0") == ratio, (name, said)
                assert last == furthest(laid[site][quantity]) or "from lag" in said
            if half := re.search(r"half-life ([\d.e]+) steps?(?: \(|, R²)", said):
                told["half-life"] += 1
                low, high = (lag - after for lag in shot.decay(site).lag_range)
                assert float(half[1]) == pytest.approx(-np.log10(2) / own.slope(low, high).slope, rel=0.06)
            if not found:
                told["no reach"] += 1
                assert said.split()[0] in ("UNDETERMINED", "VANISHING"), said
    assert {"reach", "half-life"} <= set(told), told


def closure(model: nn.Module, x: Tensor) -> Tensor:
    return loss_of(model(x), x)


# --- spectra ---------------------------------------------------------------------------------------------------------


def rnn_step(core: nn.Module, suffix: str = "l0") -> Callable[[Tensor, Tensor], Tensor]:
    w, u, b = weights(core, suffix)
    phi = torch.relu if core.nonlinearity == "relu" else torch.tanh
    return lambda h, x: phi(w @ x + u @ h + b) if h.dim() == 1 else phi(x @ w.T + h @ u.T + b)


def gru_step(core: nn.Module, suffix: str = "l0") -> Callable[[Tensor, Tensor], Tensor]:
    w, u, _ = weights(core, suffix)
    of_input, of_state = (getattr(core, f"bias_{name}_{suffix}") for name in ("ih", "hh"))

    def step(h: Tensor, x: Tensor) -> Tensor:
        rx, zx, nx = (x @ w.T + of_input).chunk(3, -1)
        rh, zh, nh = (h @ u.T + of_state).chunk(3, -1)
        z = torch.sigmoid(zx + zh)
        return (1 - z) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + z * h

    return step


def lstm_step(core: nn.Module, suffix: str = "l0") -> Callable[[Tensor, Tensor], Tensor]:
    w, u, b = weights(core, suffix)

    def step(s: Tensor, x: Tensor) -> Tensor:
        h, c = s.chunk(2, -1)
        i, f, g, o = (x @ w.T + h @ u.T + b).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)

    return step


def weights(core: nn.Module, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
    at = {name: getattr(core, f"{name}_{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return at["weight_ih"], at["weight_hh"], at["bias_ih"] + at["bias_hh"]


STEP = {"RNN_TANH": rnn_step, "RNN_RELU": rnn_step, "LSTM": lstm_step, "GRU": gru_step}


def jacobians(core: nn.Module, suffix: str, x: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Dense one-step Jacobians ∂s_{t+1}/∂s_t (T, B, S, S) by autograd, and the states (T, B, S)."""
    step = STEP[core.mode](core, suffix)
    size = core.hidden_size * (2 if core.mode == "LSTM" else 1)
    state = torch.zeros(x.shape[1], size, dtype=torch.float64) if initial is None else initial
    before, states = [], []
    for x_t in x:
        before.append(state)
        state = step(state, x_t)
        states.append(state)
    flat = torch.stack(before).flatten(0, 1), x.flatten(0, 1)
    found = torch.func.vmap(torch.func.jacrev(step))(*flat)
    return found.view(*x.shape[:2], size, size), torch.stack(states)


@torch.no_grad()
def sites_of(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Site to its Jacobians in the order in which it processes, and the lengths of its sequences."""
    model, x = copy.deepcopy(model).double(), x.double()
    if isinstance(model, EncoderDecoder):
        first, states = jacobians(model.encoder, "l0", x[:25])
        second, _ = jacobians(model.decoder, "l0", x[25:], states[-1])
        return {"encoder/l0": (first, torch.full((B,), 25)), "decoder/l0": (second, torch.full((B,), len(x) - 25))}
    lengths = torch.full((B,), len(x)) if not model.packed else RAGGED
    found = {}
    for layer in range(model.core.num_layers):
        outputs = []
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + model.core.bidirectional]:
            reverse = suffix.endswith("reverse")
            each, states = jacobians(model.core, suffix, x.flip(0) if reverse else x)
            found[f"core/{suffix}"] = each, lengths
            h = states[..., : model.core.hidden_size]
            outputs.append(h.flip(0) if reverse else h)
        x = torch.cat(outputs, -1)
    return found


def singular_values(each: Tensor, lengths: Tensor, lag: int) -> np.ndarray:
    """Those of ∂s_T/∂s_{T−lag}, of each sequence the largest first, (B, S)."""
    found = []
    for b, length in enumerate(lengths.tolist()):
        whole = torch.eye(each.shape[-1], dtype=torch.float64)
        for t in range(length - lag, length):
            whole = each[t, b] @ whole
        values = torch.linalg.svdvals(whole).numpy()
        values[values < 1e-13 * values[0]] = 0.0
        found.append(values)
    return np.array(found)


def end_of_spectrum(values: np.ndarray) -> tuple[float, float]:
    """Largest and median singular value, geometric means over the sequences."""
    middle = np.sqrt(values[:, (values.shape[1] - 1) // 2] * values[:, values.shape[1] // 2])
    with np.errstate(divide="ignore"):
        largest, median = 10 ** np.mean(np.log10([values[:, 0], middle]), axis=1)
    return float(largest), float(median)


def largest_exponent(each: Tensor, lengths: Tensor, warmup: int) -> float:
    """Growth of a tangent of our own drawing after the warm-up, natural logarithm per step, mean over the sequences."""
    rng = np.random.default_rng(5)
    found = []
    for b, length in enumerate(lengths.tolist()):
        frame = torch.tensor(np.linalg.qr(rng.normal(size=(each.shape[-1],) * 2))[0])
        grown = np.zeros(each.shape[-1])
        for t in range(length):
            frame, triangle = torch.linalg.qr(each[t, b] @ frame)
            if t >= warmup:
                with np.errstate(divide="ignore"):
                    grown += np.log(np.abs(triangle.diagonal().numpy()))
        found.append(grown.max() / (length - warmup))
    return float(np.mean(found))


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_spectrum_says_what_dense_jacobians_do(name: str) -> None:
    model, x = made(name)
    if isinstance(model, Loop):
        with pytest.raises(NothingToRecordError, match="no recurrent layer whose equations are known"):
            gradscope.spectrum(model, x)
        return
    for site, (each, lengths) in sites_of(model, x).items():
        measured = gradscope.spectrum(model, x, site=site, lags=[2, LAG])
        said = str(measured)
        assert said.startswith(f"{site} ({'hidden, cell' if model_is_lstm(model) else 'hidden'}): largest Lyapunov")
        values = singular_values(each, lengths, LAG)
        captions_of_spectra(measured, values, largest_exponent(each, lengths, int(lengths.min()) // 5))
        largest, median = end_of_spectrum(values)
        assert said.endswith(
            f"at lag {LAG} the largest singular value is {number(largest)}, the median {number(median)}"
        ), said
        warmup = int(lengths.min()) // 5
        found = re.search(
            r"exponent (−?)(\S+) per step, mean over 8 sequences after (\d+) steps of warm-up(?:: small changes (\w+) "
            r"every (\S+) steps)?(: small changes neither grow nor shrink)?; at lag 5", said,
        )  # fmt: skip
        assert found is not None, said
        assert int(found[3]) == warmup
        expected = largest_exponent(each, lengths, warmup)
        if found[2] == "infinity":
            assert expected < np.log(1e-15)
        elif found[6]:
            assert found[2] == "0"
            assert abs(expected) < 1e-12
        else:
            shown = float(found[2]) * (-1 if found[1] else 1)
            # Tangents that start elsewhere end elsewhere: by a hundredth over so few steps.
            assert shown == pytest.approx(expected, rel=0.06, abs=0.01), said
            assert found[4] == ("halve" if shown < 0 else "double")
            assert float(found[5]) == pytest.approx(np.log(2) / abs(shown), rel=0.06)


def captions_of_spectra(measured: gradscope.Spectrum, values: np.ndarray, expected: float) -> None:
    """What the figures of a spectrum say of it: all sequences together, at the last lag; its largest exponent."""
    together = np.sort(values.ravel())
    said = spectrum.caption(spectrum.table(measured))
    assert f"2 to {LAG} (2 of them)" in said
    median = together[round((together.size - 1) / 2)]
    assert f"At lag {LAG}: median {number(median)}, largest {number(together[-1])}." in said
    said = lyapunov.caption(lyapunov.table({"net": measured, "again": measured}))
    names = re.search(r"Largest: net (\S+), again (\S+)\. Triangles", said)
    assert names[1] == names[2]
    shown = [names[1]]
    said = dynamics.caption(dynamics.table({0: measured, 30: measured}))
    assert "over 2 recurrent steps" in said
    ends = re.search(r"sequences\): (\S+) at step 0, (\S+) at step 30\.", said)
    shown += [ends[1], ends[2]]
    assert "at step 4." in dynamics.caption(dynamics.table({4: measured})).partition("Below")[0]
    for one in shown:
        if one == "−infinity":
            assert expected < np.log(1e-15)
        else:
            assert float(one.replace("−", "-")) == pytest.approx(expected, rel=0.06, abs=0.01), said


def model_is_lstm(model: nn.Module) -> bool:
    return isinstance(getattr(model, "core", None), nn.LSTM)
