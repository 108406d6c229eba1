"""Sequence tasks on which memory can be measured: one function each, one line in ``TASKS``.

A task draws batches from a generator it is given, so that a seed fixes everything that a network sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gradscope.errors import SettingError, UnknownNameError
from gradscope.lab.zoo.data import load_digits, load_sunspots

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A sequence task.

    Attributes
    ----------
    name, description : str
    length : int
        Timesteps of a sequence.
    input_size, output_size : int
    metric : str
        ``"accuracy"`` (classification, cross-entropy) or ``"mse"`` (regression).
    baseline_loss : float
        Loss of the best guess that remembers nothing of the sequence.
    baseline_metric : float
        ``metric`` of that guess, on held-out data.
    draw : callable
        ``draw(generator, count)`` returns inputs ``(count, length, input_size)`` and targets.
    held_out : tuple of Tensor
        Inputs and targets that training never draws.
    every_step : bool
        Whether a target belongs to every timestep; otherwise one to the whole sequence, read at its end.
    scored_steps : int
        With ``every_step``: how many last timesteps count for ``metric``.
    around : int
        How many timesteps ``length`` has more than the task was asked for.
    """

    name: str
    description: str
    length: int
    input_size: int
    output_size: int
    metric: str
    baseline_loss: float
    baseline_metric: float
    draw: Callable[[torch.Generator, int], Batch]
    held_out: Batch
    every_step: bool = False
    scored_steps: int = 0
    around: int = 0

    def batches(self, seed: int, size: int) -> Iterator[Batch]:
        """Draw batches without end; the same seed draws the same batches."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.draw(generator, size)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy or mean squared error."""
        if self.metric == "mse":
            return functional.mse_loss(outputs.squeeze(-1), targets)
        return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Value of ``metric``."""
        if self.metric == "mse":
            return float(self.loss(outputs, targets))
        if self.every_step:
            outputs, targets = outputs[:, -self.scored_steps :], targets[:, -self.scored_steps :]
        return float((outputs.argmax(-1) == targets).double().mean())


def _held_out(draw: Callable[[torch.Generator, int], Batch], count: int = 512) -> Batch:
    # A seed that no run's seed meets: batches() is given small integers.
    return draw(torch.Generator().manual_seed(2**31 + 1), count)


def digits(length: int | None = None) -> Task:
    """Read an 8x8 handwritten digit pixel by pixel, row by row: 64 timesteps of one number (data/README.md).

    1,437 digits to train on and 360 held out, split by one fixed shuffle. ``length`` keeps the last pixels only.
    """
    length = 64 if length is None else length
    _check_length(length, 1, 64)
    images, labels = load_digits()
    pixels = torch.from_numpy(images).reshape(-1, 64, 1).float()[:, 64 - length :] / 16
    targets = torch.from_numpy(labels)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]

    def draw(generator: torch.Generator, count: int) -> Batch:
        rows = train[torch.randint(len(train), (count,), generator=generator)]
        return pixels[rows], targets[rows]

    return Task(
        "digits",
        "8x8 handwritten digits read pixel by pixel",
        length,
        1,
        10,
        "accuracy",
        math.log(10),
        0.1,
        draw,
        (pixels[test], targets[test]),
    )


def adding(length: int | None = None) -> Task:
    """Add the two marked numbers of a sequence (Hochreiter & Schmidhuber 1997, in the form of Arjovsky et al. 2016).

    Each timestep shows a number of U[0, 1] and a mark; one mark falls in each half. Guessing 1 has the variance of
    the sum as its error: 2/12.
    """
    length = 100 if length is None else length
    _check_length(length, 2)

    def draw(generator: torch.Generator, count: int) -> Batch:
        values = torch.rand(count, length, generator=generator)
        first = torch.randint(length // 2, (count, 1), generator=generator)
        second = torch.randint(length // 2, length, (count, 1), generator=generator)
        marks = torch.zeros(count, length).scatter_(1, torch.cat([first, second], 1), 1.0)
        return torch.stack([values, marks], -1), (values * marks).sum(1)

    description = "add the two marked numbers of a sequence"
    return Task("adding", description, length, 2, 1, "mse", 1 / 6, 1 / 6, draw, _held_out(draw))


def temporal_order(length: int | None = None) -> Task:
    """Tell in which order two rare symbols came (Hochreiter & Schmidhuber 1997; Pascanu et al. 2013).

    One of A, B stands in [T/10, 2T/10], another in [4T/10, 5T/10], among four symbols that mean nothing; the
    classes are AA, AB, BA, BB.
    """
    length = 50 if length is None else length
    _check_length(length, 10)

    def draw(generator: torch.Generator, count: int) -> Batch:
        symbols = torch.randint(2, 6, (count, length), generator=generator)
        told = torch.randint(2, (count, 2), generator=generator)
        early = torch.randint(length // 10, 2 * length // 10 + 1, (count, 1), generator=generator)
        late = torch.randint(4 * length // 10, 5 * length // 10 + 1, (count, 1), generator=generator)
        symbols.scatter_(1, torch.cat([early, late], 1), told)
        return functional.one_hot(symbols, 6).float(), told[:, 0] * 2 + told[:, 1]

    description = "tell in which order two rare symbols came"
    return Task("temporal_order", description, length, 6, 4, "accuracy", math.log(4), 0.25, draw, _held_out(draw))


def copy(length: int | None = None) -> Task:
    """Repeat ten symbols after a delay (Arjovsky et al. 2016).

    Ten of eight symbols, ``length - 1`` blanks, a delimiter, ten blanks; the answer is blank until the last ten
    timesteps, which repeat the symbols. Who remembers nothing still knows every blank and guesses the ten symbols
    uniformly, at ln 8 each: a mean cross-entropy of 10 ln 8 / (length + 20).
    """
    length = 50 if length is None else length
    _check_length(length, 1)
    blank, delimiter = 8, 9

    def draw(generator: torch.Generator, count: int) -> Batch:
        told = torch.randint(8, (count, 10), generator=generator)
        shown = torch.full((count, length + 20), blank)
        shown[:, :10] = told
        shown[:, length + 9] = delimiter
        targets = torch.full_like(shown, blank)
        targets[:, -10:] = told
        return functional.one_hot(shown, 10).float(), targets

    guess = 10 * math.log(8) / (length + 20)
    description = f"repeat ten symbols after {length} timesteps"
    return Task(
        "copy",
        description,
        length + 20,
        10,
        9,
        "accuracy",
        guess,
        1 / 8,
        draw,
        _held_out(draw),
        every_step=True,
        scored_steps=10,
        around=20,
    )


def sunspots(length: int | None = None) -> Task:
    """Forecast the next monthly mean sunspot number from the ``length`` months before (data/README.md).

    In units of the standard deviation of the training part, the first four fifths of 1749-1983; its mean has an error
    of 1. The last fifth is held out: the Sun was more active in it, so errors there are larger than in training,
    those of guessing the mean included (about 3).
    """
    length = 60 if length is None else length
    _check_length(length, 1, 480)
    numbers = torch.from_numpy(load_sunspots().numbers).float()
    first = 4 * len(numbers) // 5
    numbers = (numbers - numbers[:first].mean()) / numbers[:first].std(correction=0)
    windows = numbers.unfold(0, length + 1, 1)
    # No month of the held-out part is ever seen in training, neither as a target nor in a window.
    train, test = windows[: first - length], windows[first:]

    def draw(generator: torch.Generator, count: int) -> Batch:
        rows = train[torch.randint(len(train), (count,), generator=generator)]
        return rows[:, :-1, None], rows[:, -1]

    description = f"forecast the next month of the sunspot series from {length}"
    held_out = test[:, :-1, None], test[:, -1]
    of_mean = float(held_out[1].square().mean())
    return Task("sunspots", description, length, 1, 1, "mse", 1.0, of_mean, draw, held_out)


TASKS: dict[str, Callable[[int | None], Task]] = {
    "digits": digits,
    "adding": adding,
    "temporal_order": temporal_order,
    "copy": copy,
    "sunspots": sunspots,
}


def build_task(name: str, length: int | None = None) -> Task:
    """Build a task by name.

    Raises
    ------
    UnknownNameError
        If there is no such task.
    SettingError
        If the task cannot have that length.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name](length)


def _check_length(length: int, low: int, high: int | None = None) -> None:
    if length < low or (high is not None and length > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise SettingError(f"length {length} is out of range for this task: give {bounds}.")
