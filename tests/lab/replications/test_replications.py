from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from gradscope.lab.claims import Asked, Statement
from gradscope.lab.replications import PAPERS, chen, engelken, named, pascanu, saxe, vanilla
from gradscope.lab.replications.adding_problem import reach
from gradscope.lab.replications.mean_field import (
    chi,
    fixed_point,
    gaussian_mean,
    growth_anew,
    largest_exponent,
    square_kept,
)
from gradscope.lab.replications.telling import Replication
from gradscope.lab.zoo.models import build_model
from gradscope.lab.zoo.tasks import adding, temporal_order


@pytest.mark.parametrize("name", PAPERS)
def test_every_paper_is_measured_and_told_at_small_size(name):
    found = named(name)(quick=True)
    assert found.name == name
    assert found.differs
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [one["statement"] for one in told["statements"]] == [claim.statement for claim in found.claims]
    for one in told["statements"]:
        assert one["verdict"] in ("agrees", "agrees in part", "does not agree", "undecided")
        assert all(len(measured["values"]) == 2 for measured in one["measured"])
    words = " ".join(found.words().split())
    assert found.paper in words
    assert all(claim.statement in words for claim in found.claims)


def test_a_verdict_follows_from_the_numbers_and_names_what_was_asked_for():
    asked = Asked("at g = 1", "the exponent", lambda found: found, -0.1, 0.1, at=("at g = 1",))
    claims = tuple(Statement("It is zero.", (asked,)).put_to(values) for values in ([0.01, 0.02], [0.5, 0.51]))
    words = Replication("a", "A 2000", claims, ("fewer units",)).words()
    assert "agrees: holds at g = 1 (0.015)." in words
    assert "does not agree: does not hold at g = 1 (0.505)." in words
    assert "asked for: between −0.1 and 0.1" in words
    assert "differs from the paper: fewer units" in words


def test_integrals_over_a_gaussian_are_those_of_its_moments():
    assert gaussian_mean(lambda u: u**2, 3.0, 1.0) == pytest.approx(4.0, rel=1e-9)
    assert gaussian_mean(np.cos, 2.0) == pytest.approx(math.exp(-1.0), rel=1e-9)


def test_the_mean_field_of_small_weights_is_linear():
    # Without drive and below 1 the states die out: χ = σ².
    assert chi(0.5) == pytest.approx(0.25, rel=1e-9)
    assert fixed_point(0.5, 1e-6) == pytest.approx(1e-6 / 0.75, rel=1e-4)


def test_the_mean_field_exponents_are_those_of_an_adaptive_integral():
    # scipy.integrate.quad over the density, split where tanh bends: .5324279416
    assert largest_exponent(5.0) == pytest.approx(0.5324279416, abs=1e-8)
    assert largest_exponent(0.5) == pytest.approx(math.log(0.5), rel=1e-9)


def test_weights_that_are_kept_add_up_themselves_and_those_drawn_anew_their_squares():
    rng, n, lag, sigma = np.random.default_rng(0), 400, 12, 0.8

    def one_step():
        return 0.5 * np.eye(n) + 0.25 * sigma * rng.normal(size=(n, n)) / n**0.5

    kept = np.linalg.matrix_power(one_step(), lag)
    anew = np.linalg.multi_dot([one_step() for _ in range(lag)])
    assert np.sum(kept**2) / n == pytest.approx(square_kept(lag, sigma), rel=0.05)
    assert np.sum(anew**2) / n == pytest.approx(growth_anew(sigma) ** lag, rel=0.05)
    # far back the growth is that of the spectral radius
    assert square_kept(401, sigma) / square_kept(400, sigma) == pytest.approx((0.5 + 0.25 * sigma) ** 2, rel=0.005)


@pytest.mark.parametrize("cell", [torch.nn.LSTMCell, torch.nn.GRUCell])
def test_cells_drawn_anew_have_the_singular_values_of_their_composition(cell):
    size = chen.Size(units=3, lags=(1, 3))
    torch.manual_seed(5)
    cells = [cell(1, 3).double() for _ in range(3)]
    silence = torch.zeros(1, dtype=torch.float64)

    def composed(state):
        for one in cells:
            state = one(silence, state) if cell is torch.nn.GRUCell else torch.cat(one(silence, state.chunk(2)))
        return state

    width = 3 if cell is torch.nn.GRUCell else 6
    matrix = torch.autograd.functional.jacobian(composed, torch.zeros(width, dtype=torch.float64))
    expected = torch.linalg.svdvals(matrix)[:3]  # the rest of an LSTM's are rounding
    np.testing.assert_allclose(np.exp(chen.drawn_anew(cell, size, 5)[1, :3] / 2), expected, rtol=1e-9)


def test_below_the_onset_the_largest_exponent_is_that_of_the_matrix():
    size = engelken.Size(units=20, steps=400, warmup=200)
    found = engelken.layer_exponents(0.5, size, 3, 1)[0]
    draw = torch.randn(20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.5 / 20**0.5
    assert found == pytest.approx(math.log(np.abs(np.linalg.eigvals(draw.numpy())).max()), abs=0.02)


def test_the_rate_network_at_rest_relaxes_with_its_time_constant():
    # Without coupling every direction decays by 1 - dt a step.
    found = engelken.rate_spectrum(1e-9, 8, engelken.QUICK, 0)
    np.testing.assert_allclose(found.exponents, math.log(1 - engelken.TIME_STEP), rtol=1e-6)
    assert found.dimension == 0


def test_a_crossing_is_read_between_the_couplings_around_it():
    assert engelken.crossing((0.8, 0.9, 1.1), np.array([-0.2, -0.1, 0.1])) == pytest.approx(1.0)
    assert math.isnan(engelken.crossing((0.8, 0.9), np.array([-0.2, -0.1])))
    assert engelken.extrapolated((0.8, 0.9), np.log([0.8, 0.9])) == pytest.approx(1.0)
    assert engelken.extrapolated((0.8, 0.9), np.log([0.8, 0.9]) + 0.1) == pytest.approx(math.exp(-0.1))


def test_a_rate_is_half_the_growth_of_the_mean_squared_singular_value():
    lags = (2, 4, 6)
    log_squared = np.array([[lag * math.log(0.25), -math.inf] for lag in lags])
    assert chen.rate(log_squared, lags) == pytest.approx(math.log10(0.5))
    assert chen.spread(np.zeros((1, 4))) == 0
    assert chen.spread(np.log(np.array([[1.0, 3.0]]))) == pytest.approx(0.25)


def test_an_orthogonal_matrix_near_the_origin_is_an_isometry():
    found = chen.vanilla(1.0, chen.QUICK, 0, drive=1e-12, orthogonal=True)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


def gradients_of(weights, data):
    """∂loss/∂W of every layer from autograd over the explicit loss on the moments."""
    leaves = [w.clone().requires_grad_() for w in weights]
    whole = torch.linalg.multi_dot([*reversed(leaves)])
    loss = data.total + ((whole @ data.inputs) * whole).sum() - 2 * (whole * data.labels).sum()
    return loss, torch.autograd.grad(loss, leaves)


def test_a_linear_networks_training_is_that_of_autograd():
    data, rate = saxe.digits(), 0.01
    weights = saxe.layers("Gaussian", 3, data.inputs.shape[0], 10, 0)
    goal, steps = data.total - saxe.LEARNT * data.explained, 0
    expected = [w.clone() for w in weights]
    while True:
        loss, gradients = gradients_of(expected, data)
        if loss <= goal:
            break
        expected = [w - rate * g for w, g in zip(expected, gradients, strict=True)]
        steps += 1
    assert steps > 3
    assert saxe.steps_to_learn(weights, data, rate, 1000) == steps
    assert saxe.steps_to_learn(weights, data, rate, 2) == 2
    assert saxe.steps_to_learn(weights, data, 1e6, 50) == 50


def test_the_moments_are_those_of_the_digits_and_their_best_linear_map():
    data = saxe.digits()
    torch.testing.assert_close(data.inputs, torch.eye(len(data.inputs), dtype=torch.float64))
    # one-hot labels less their mean: 1 - sum of squared class shares
    assert data.total == pytest.approx(0.9, abs=1e-3)
    assert 0 < data.explained < data.total


def test_orthogonal_layers_are_orthogonal_whatever_their_number():
    assert saxe.conditioning("orthogonal", 20, 16, 0) == 1.0
    assert saxe.conditioning("Gaussian", 20, 16, 0) < 0.5


def test_what_arrives_before_training_is_that_of_autograd():
    task = adding(6)
    model = build_model("lstm-chrono", task, 5, seed=1).double()
    inputs, targets = task.draw(torch.Generator().manual_seed(1), 32)
    core, h, states = model.recurrent, torch.zeros(32, 5, dtype=torch.float64), [torch.zeros(32, 5).double()]
    for x in inputs.double().unbind(1):
        gates = x @ core.weight_ih_l0.T + core.bias_ih_l0 + h @ core.weight_hh_l0.T + core.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * states[-1] + torch.sigmoid(i) * torch.tanh(g)
        c.requires_grad_().retain_grad()
        states.append(c)
        h = torch.sigmoid(o) * torch.tanh(c)
    task.loss(model.readout(h), targets.double()).backward()
    first, last = (states[k].grad.norm(dim=1).log10().mean() for k in (1, -1))
    found = reach("lstm-chrono", 6, 5, 1)
    assert found == pytest.approx(float(10 ** (first - last)), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "verdicts"),
    [
        ("chen", ["agrees", "agrees", "agrees", "agrees"]),
        ("le", ["agrees", "agrees", "agrees in part", "agrees in part", "undecided"]),
        ("pascanu", ["agrees", "undecided", "does not agree", "agrees in part", "agrees", "agrees"]),
        ("engelken", ["agrees in part", "agrees", "agrees", "agrees", "agrees in part"]),
        ("saxe", ["agrees", "agrees", "agrees"]),
        ("tallec", ["agrees", "agrees", "agrees", "agrees in part"]),
    ],
)
def test_the_page_of_replications_says_what_is_measured(name, verdicts):
    assert [one["verdict"] for one in named(name)().to_json()["statements"]] == verdicts


# --- Pascanu 2013 --------------------------------------------------------------------------------------------------


def several(sigmoid, *, count=3, inputs=6, units=4, outputs=4):
    generator = torch.Generator().manual_seed(7)
    shapes = ((inputs, units), (units, units), (units,), (units, outputs), (outputs,))
    parameters = [torch.randn(count, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return vanilla.Networks(*parameters, sigmoid=sigmoid)


def by_autograd(network, x, targets):
    """One network's loss and states as leaves of autograd, from the equations of the paper."""
    u, w, b, v, c = (p[0].clone().requires_grad_() for p in network.parameters)
    states = [torch.zeros(x.shape[1], w.shape[0], dtype=torch.float64, requires_grad=True)]
    for row in x:
        z = row @ u + states[-1] @ w + b
        states.append(torch.sigmoid(z) if network.sigmoid else torch.tanh(z))
        states[-1].retain_grad()
    loss = torch.nn.functional.cross_entropy(states[-1] @ v + c, targets)
    loss.backward()
    return (u, w, b, v, c), states, [state.grad for state in states]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_networks_trained_together_have_the_gradients_of_autograd(sigmoid):
    networks = several(sigmoid)
    task = temporal_order(10)
    x, targets = task.draw(torch.Generator().manual_seed(0), 3 * 5)
    x, targets = x.double().view(3, 5, 10, 6).transpose(1, 2), targets.view(3, 5)
    found = vanilla.gradients(networks, x, targets)
    for i in range(3):
        one = networks.only(torch.tensor([i]))
        parameters, states, adjoints = by_autograd(one, x[i], targets[i])
        for mine, leaf in zip(found.loss, parameters, strict=True):
            torch.testing.assert_close(mine[i], leaf.grad)
        # Ω as a function of W alone, adjoints and states held fixed.
        w = parameters[1].detach().clone().requires_grad_()
        terms = []
        for before, at, h in zip(adjoints[:-1], adjoints[1:], states[1:], strict=True):
            h = h.detach()
            delta = at * (h * (1 - h) if sigmoid else 1 - h**2)
            back = delta @ w.T
            torch.testing.assert_close(back.detach(), before)
            terms.append((back.pow(2).sum(1) / at.pow(2).sum(1) - 1) ** 2)
        torch.stack(terms).mean().backward()
        torch.testing.assert_close(found.regulariser[i], w.grad)


def test_a_threshold_bounds_the_update_and_none_leaves_it():
    networks = several(False)
    task = temporal_order(10)
    x, targets = task.draw(torch.Generator().manual_seed(0), 3 * 5)
    x, targets = x.double().view(3, 5, 10, 6).transpose(1, 2), targets.view(3, 5)
    found = vanilla.gradients(networks, x, targets)
    threshold, weight = torch.tensor([0.01, math.inf, math.inf]), torch.tensor([0.0, 0.0, 4.0])
    moved, norm = vanilla.updated(networks, found, 0.5, threshold, weight)
    steps = [(a - b) / 0.5 for a, b in zip(networks.parameters, moved.parameters, strict=True)]
    lengths = torch.stack([step.flatten(1).square().sum(1) for step in steps]).sum(0).sqrt()
    torch.testing.assert_close(lengths, torch.cat([torch.tensor([0.01]).double(), norm[1:]]))
    torch.testing.assert_close(steps[1][2], found.loss[1][2] + 4 * found.regulariser[2])
    assert norm[0] > 0.01


def test_networks_are_judged_by_their_answers_and_given_up_when_they_are_no_numbers():
    networks = several(False, count=2)
    networks.w[1, 0, 0] = math.nan
    task = temporal_order(10)
    inputs, targets = task.draw(torch.Generator().manual_seed(3), 40)
    wrong = vanilla.share_wrong(networks, inputs.double(), targets)
    states = networks.only(torch.tensor([0])).states(inputs.double()[None].transpose(1, 2))
    answers = (states[-1, 0] @ networks.v[0] + networks.c[0]).argmax(-1)
    assert wrong[0] == pytest.approx(float((answers != targets).double().mean()))
    assert math.isnan(wrong[1])


def test_the_three_starts_are_those_of_the_paper():
    smart = pascanu.drawn("smart tanh", 50, 0)
    assert ((smart.w[0] != 0).sum(0) == 15).all()  # incoming connections
    assert pascanu.radius(smart.w[0]) == pytest.approx(0.95, rel=1e-5)
    assert pascanu.drawn("tanh", 50, 0).w.std() == pytest.approx(0.1, rel=0.05)
    sigmoid = pascanu.drawn("sigmoid", 50, 0)
    assert sigmoid.sigmoid
    assert sigmoid.w.std() == pytest.approx(0.01, rel=0.05)
    assert not smart.b.any()


def test_the_reach_of_a_network_is_that_of_its_adjoints():
    network = pascanu.drawn("tanh", 5, 1)
    task = temporal_order(10)
    inputs, targets = task.draw(torch.Generator().manual_seed(0), 32)
    doubled = network.having([p.double() for p in network.parameters])
    _, _, adjoints = by_autograd(doubled, inputs.double().transpose(0, 1), targets)
    first, last = (adjoints[t].norm(dim=1).log10().mean() for t in (1, -1))
    assert pascanu.reach(network, 10) == pytest.approx(float(10 ** (first - last)), rel=1e-6)
