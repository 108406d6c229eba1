from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradscope.errors import SettingError, UnknownNameError
from gradscope.lab.zoo.data import load_sunspots
from gradscope.lab.zoo.tasks import TASKS, build_task


def draw(name, length=None, count=4096, seed=3):
    task = build_task(name, length)
    return task, *task.draw(torch.Generator().manual_seed(seed), count)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_fixes_every_batch(name):
    task = build_task(name)
    first, again, other = task.batches(1, 8), task.batches(1, 8), task.batches(2, 8)
    for _ in range(3):
        (x, y), (same_x, same_y), (other_x, _) = next(first), next(again), next(other)
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)
        assert not torch.equal(x, other_x)


@pytest.mark.parametrize("name", TASKS)
def test_batches_have_the_shape_the_task_states(name):
    task, x, _ = draw(name, count=5)
    assert x.shape == (5, task.length, task.input_size)
    assert task.held_out[0].shape[1:] == x.shape[1:]


def test_digits_for_training_and_held_out_are_different_images():
    task, x, _ = draw("digits", count=5000)
    seen = {image.numpy().tobytes() for image in x}
    held_out = [image.numpy().tobytes() for image in task.held_out[0]]
    assert len(held_out) == 360
    assert sum(image in seen for image in held_out) == 0


def test_a_shorter_digit_is_its_last_pixels():
    whole, last = build_task("digits"), build_task("digits", 16)
    assert torch.equal(last.held_out[0], whole.held_out[0][:, -16:])


def test_no_held_out_month_of_the_sunspots_is_seen_in_training():
    task, x, y = draw("sunspots", 12, count=20_000)
    numbers = load_sunspots().numbers
    first = 4 * len(numbers) // 5
    mean, spread = numbers[:first].mean(), numbers[:first].std()
    trained = (numbers[:first] - mean) / spread
    held_out = (numbers[first:] - mean) / spread
    np.testing.assert_allclose(y.unique().numpy(), np.unique(trained[12:].astype("f4")), rtol=1e-4, atol=1e-6)
    inputs, targets = task.held_out
    np.testing.assert_allclose(targets.numpy(), held_out[12:], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(inputs[5, :, 0].numpy(), held_out[5:17], rtol=1e-4, atol=1e-6)
    assert x.shape == (20_000, 12, 1)


def test_the_mean_of_the_sunspots_has_an_error_of_one():
    task, _, y = draw("sunspots", count=50_000)
    assert float(task.loss(torch.zeros(len(y), 1), y)) == pytest.approx(task.baseline_loss, rel=0.05)


def test_the_held_out_sunspots_are_further_from_that_mean():
    task, *_ = draw("sunspots", count=1)
    numbers, first = load_sunspots().numbers, 4 * len(load_sunspots().numbers) // 5
    # Of the months held out, those that have a whole window of held-out months before them.
    errors = ((numbers[first + task.length :] - numbers[:first].mean()) / numbers[:first].std()) ** 2
    assert task.baseline_metric == pytest.approx(errors.mean(), rel=1e-5)
    assert task.baseline_metric > 2.5


def test_adding_asks_for_the_sum_of_two_marked_numbers_one_in_each_half():
    _, x, y = draw("adding", 11)
    values, marks = x.unbind(-1)
    assert torch.equal(marks.sum(1), torch.full((len(x),), 2.0))
    assert (marks[:, :5].sum(1) == 1).all()
    torch.testing.assert_close(y, values[marks.bool()].view(-1, 2).sum(1))


def test_adding_guessed_by_its_mean_has_the_stated_error():
    task, _, y = draw("adding", count=200_000)
    guess = torch.ones(len(y), 1)
    assert task.score(guess, y) == pytest.approx(task.baseline_metric, rel=0.02)


def test_temporal_order_is_readable_from_the_two_rare_symbols():
    _, x, y = draw("temporal_order", 60)
    symbols = x.argmax(-1)
    rare = symbols < 2
    assert (rare.sum(1) == 2).all()
    order = symbols[rare].view(-1, 2)
    assert torch.equal(y, order[:, 0] * 2 + order[:, 1])
    first, second = rare.nonzero()[:, 1].view(-1, 2).unbind(1)
    assert (first.min(), first.max(), second.min(), second.max()) == (6, 12, 24, 30)


def test_copy_repeats_the_first_ten_symbols_at_the_end():
    task, x, y = draw("copy", 7, count=64)
    symbols = x.argmax(-1)
    assert task.length == symbols.shape[1] == 27
    assert torch.equal(symbols[:, :10], y[:, -10:])
    assert (y[:, :-10] == 8).all()
    assert ((symbols == 9).nonzero()[:, 1] == 16).all()
    assert (symbols[:, 17:] == 8).all()


def test_copy_guessed_without_memory_has_the_stated_loss():
    task, _, y = draw("copy", 30, count=64)
    # Certain of every blank, uniform over the eight symbols at the end.
    outputs = torch.full((*y.shape, 9), -1e4)
    outputs[:, :-10, 8] = 0
    outputs[:, -10:, :8] = 0
    assert float(task.loss(outputs, y)) == pytest.approx(task.baseline_loss, rel=1e-5)
    assert task.baseline_loss == pytest.approx(10 * math.log(8) / 50)


@pytest.mark.parametrize("name", ["digits", "temporal_order"])
def test_a_uniform_guess_has_the_stated_loss(name):
    task, _, y = draw(name, count=50)
    assert float(task.loss(torch.zeros(50, task.output_size), y)) == pytest.approx(task.baseline_loss, rel=1e-6)


def test_score_of_copy_counts_the_last_ten_steps_only():
    task, _, y = draw("copy", 20, count=16)
    outputs = torch.nn.functional.one_hot(y, 9).float()
    assert task.score(outputs, y) == 1.0
    outputs[:, -5:] = torch.nn.functional.one_hot(torch.full((16, 5), 8), 9).float()
    assert task.score(outputs, y) == 0.5


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'adding'"):
        build_task("addng")


@pytest.mark.parametrize(("name", "length"), [("digits", 65), ("digits", 0), ("adding", 1), ("temporal_order", 9)])
def test_an_impossible_length_is_refused(name, length):
    with pytest.raises(SettingError, match=str(length)):
        build_task(name, length)
