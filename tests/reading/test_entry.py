import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.diagnostics import find_entry, fit_decay
from gradscope.errors import SettingError
from gradscope.words import sentence
from tests.made_runs import make_run

LAGS = np.arange(60)


def adjoint(direct, rate):
    """Norms of a scalar recurrence that multiplies by ``10**rate`` a step, with ``direct`` entering at every lag."""
    total = np.zeros_like(direct)
    for lag in range(direct.shape[-1]):
        carried = total[..., lag - 1] * 10.0**rate if lag else 0.0
        total[..., lag] = direct[..., lag] + carried
    return total


def entering(*at, size=1.0):
    direct = np.zeros((3, LAGS.size))
    direct[:, list(at)] = size
    return direct


def judged(direct, rate, **options):
    total = adjoint(direct, rate)
    return fit_decay(LAGS, total, entry=find_entry(LAGS, direct, total), **options)


def test_a_loss_at_the_last_step_enters_at_lag_0():
    entry = find_entry(LAGS, entering(0), adjoint(entering(0), -0.1))
    assert (entry.lag, entry.everywhere) == (0, False)
    assert judged(entering(0), -0.1).lag_range == (5, 59)


def test_a_loss_in_the_middle_is_judged_from_there():
    fit = judged(entering(20), -0.1)
    assert (fit.reference_lag, fit.lag_range, fit.verdict) == (20, (25, 59), "vanishing")
    assert fit.rate == pytest.approx(-0.1)
    assert "no gradient arrives yet at lags 0–19" in fit.reason
    assert "exactly zero" not in fit.reason
    assert "of that at lag 20, where it enters" in sentence(fit)


def test_a_second_loss_is_judged_from_where_it_enters():
    direct = entering(0) + 100 * entering(30)
    fit = judged(direct, -0.1)
    assert (fit.reference_lag, fit.lag_range) == (30, (35, 59))
    assert fit.half_life == pytest.approx(np.log10(2) / 0.1)


def test_a_site_reached_by_one_step_only_says_so():
    fit = judged(entering(59), -0.1)
    assert fit.verdict == "undetermined"
    said = sentence(fit, "lstm/l0_reverse")
    assert "only one step of this recurrence is reached by a gradient (lag 59), the first it processes" in said


@pytest.mark.parametrize("rate", [-0.3, -0.05, -0.02])
def test_a_level_curve_under_a_loss_at_every_step_is_not_called_preserved(rate):
    fit = judged(entering(*LAGS), rate)
    assert fit.verdict == "undetermined"
    assert "a gradient enters from above at most steps" in fit.reason


def test_a_level_curve_under_another_layer_is_preserved():
    # One loss reaches every step of it through the layer above.
    total = adjoint(entering(*LAGS), -0.3)
    assert fit_decay(LAGS, total, entry=find_entry(LAGS, entering(*LAGS), total, "layer")).verdict == "preserved"


def test_growth_that_outgrows_all_that_entered_is_exploding_even_under_a_loss_at_every_step():
    assert judged(entering(*LAGS), 0.1).verdict == "exploding"


def test_growth_that_what_enters_explains_is_not_called_exploding():
    direct = 10 ** (0.1 * LAGS) * entering(*LAGS)
    fit = judged(direct, -0.3)
    assert fit_decay(LAGS, adjoint(direct, -0.3)).verdict == "exploding"  # what the bare curve looks like
    assert fit.verdict == "undetermined"
    assert "the curve shows what arrives from above" in fit.reason


def test_a_curve_that_falls_although_a_gradient_enters_at_every_step_vanishes():
    direct = 10 ** (-0.2 * LAGS) * entering(*LAGS)
    for rate in (-0.1, -0.2, -0.3):
        assert judged(direct, rate).verdict == "vanishing"


def test_where_nothing_enters_nothing_is_said():
    assert find_entry(LAGS, np.zeros((2, 60)), np.ones((2, 60))) is None
    assert find_entry([], np.empty((2, 0)), np.empty((2, 0))) is None
    with pytest.raises(SettingError, match="direct and total"):
        find_entry(LAGS, np.ones((2, 60)), np.ones((2, 59)))


class LastOutput(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.lstm = nn.LSTM(3, 6, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_no_direction_of_a_bidirectional_stack_read_at_its_last_output_explodes(tmp_path):
    torch.manual_seed(2)
    model, x, y = LastOutput(4), torch.randn(5, 30, 3), torch.randint(0, 2, (5,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1, samples=None):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    answers = {answer.site: answer for answer in gradscope_answers(gradscope.open_run(tmp_path / "run"))}
    assert len(answers) == 8
    assert all(answer.late.verdict != "exploding" for answer in answers.values())
    assert answers["lstm/l3"].late.verdict == "vanishing"
    assert "only one step of this recurrence is reached" in answers["lstm/l3_reverse"].sentence
    assert "a gradient enters from above at most steps" in answers["lstm/l0_reverse"].sentence


def gradscope_answers(run):
    from gradscope.reading.answers import answers

    return answers(run)


def test_a_level_curve_is_not_called_preserved_where_what_enters_is_not_known(tmp_path):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.i2h, self.h2h, self.out, self.back = nn.Linear(3, 9), nn.Linear(9, 9), nn.Linear(9, 1), nn.Linear(1, 9)

        def forward(self, x):
            h, y, ys = x.new_zeros(x.shape[1], 9), x.new_zeros(x.shape[1], 1), []
            for x_t in x:
                # What is made of the state leaves the loop and is fed back: neither part of it can be told.
                h = gradscope.state("h", torch.tanh(self.i2h(x_t) + self.h2h(h) + self.back(y)))
                y = self.out(h)
                ys.append(y)
            return torch.stack(ys)

    torch.manual_seed(0)
    model = Loop()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gradscope.record(model, tmp_path / "run", optimizer=optimizer, every=1):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(40, 8, 3)).pow(2).mean().backward()
            optimizer.step()
    run = gradscope.open_run(tmp_path / "run")
    fit = run.decay("h")
    assert fit.verdict == "undetermined"
    assert "what enters from above was not recorded (direct)" in fit.reason
    assert any(line.reason.startswith("direct:") for line in run.coverage)


def test_numbered_states_that_stay_level_are_not_called_preserved(tmp_path):
    level = np.ones((6, 40))
    make_run(tmp_path / "run", (0.0,) * 4, cell="gru", norms=lambda record: level, extra={"state_1": level})
    fit = gradscope.open_run(tmp_path / "run").decay("lstm/l0", "state_1")
    assert fit.verdict == "undetermined"
    assert "was not recorded (direct)" in fit.reason
