"""Every claim of a quick lecture from written-out loops under autograd, trainings in plain torch and numpy."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gradscope.lab.claims import Answered, Claim
from gradscope.lab.lecture.chapters import tell
from gradscope.lab.lecture.measuring import Experiment
from gradscope.lab.lecture.textbook import TEXTBOOK
from gradscope.lab.lecture.trainings import experiments
from gradscope.lab.zoo.tasks import Task, build_task
from tests.unrolled import unroll

T, H, SEEDS = 10, 6, 2
FRACTIONS = (1.0, 0.1, 0.01)


# --- one training, and what arrives before and after it -------------------------------------------------------------


@dataclass
class Own:
    """What we measure of an experiment ourselves."""

    curves: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # (when, quantity) -> log10 by lag
    forget: float = math.nan
    clipped: dict[float, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    held_out: float = math.nan
    train_loss: float = math.nan
    accuracy: float = math.nan

    def reach(self, when: str, quantity: str = "") -> float:
        curve = self.curves[when, quantity]
        return 10.0 ** (curve[-1] - curve[0])

    def rate(self, when: str, quantity: str = "") -> float:
        curve, first = self.curves[when, quantity], T // 4
        return float(stats.linregress(np.arange(first, T), curve[first:]).slope)


def loss_of(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    if task.metric == "mse":
        return ((outputs.squeeze(-1) - targets) ** 2).mean()
    return -torch.log_softmax(outputs, -1)[torch.arange(len(targets)), targets].mean()


def drawn(task: Task, seed: int, count: int) -> tuple[Tensor, Tensor]:
    return task.draw(torch.Generator().manual_seed(2**31 + seed), count)


def geometric(by_lag: list[Tensor]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(np.array([one.norm(dim=1).numpy() for one in by_lag])).mean(1)


def adjoints(model: nn.Module, task: Task) -> dict[str, np.ndarray]:
    """Quantity to its curve: ``""`` is the one that describes the network, of its lowest layer."""
    model = copy.deepcopy(model).double()
    x, y = drawn(task, 7, 32)
    x, y = x.double().requires_grad_(), y.double() if y.is_floating_point() else y
    loss_of(task, model(x), y).backward()
    found = {"input": geometric([x.grad[:, t] for t in reversed(range(T))])}
    core = getattr(model, "recurrent", None)
    if core is None:
        return found | {"": found["input"]}
    if isinstance(core, nn.RNNBase):
        for detached in (False, True)[: 1 + isinstance(core, nn.LSTM)]:
            loop = unroll(core, x.detach().transpose(0, 1), detach_hidden=detached)
            end = loop.output[-1]
            if core.bidirectional:
                end = torch.cat([loop.output[-1, :, :H], loop.output[0, :, H:]], 1)
            loop.differentiate(loss_of(task, model.readout(end), y))
            for layer in range(core.num_layers):
                for name, values in loop.sites[f"l{layer}"].gradients.items():
                    if name in ("hidden", "cell"):
                        key = "cell path" if detached and name == "cell" else f"{name} {layer}" if layer else name
                        if not (detached and name == "hidden"):
                            found[key] = geometric(list(values.flip(0)))
    else:
        found |= of_cell(core, model.readout, task, x.detach(), y)
    return found | {"": found.get("cell", found["hidden"])}


def of_cell(core: nn.Module, readout: nn.Module, task: Task, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    state = core.initial_state(x)
    kept: dict[str, list[Tensor]] = {}
    for x_t in x.unbind(1):
        state = core.step(x_t, state)
        for name, value in zip(("hidden", "cell"), state if isinstance(state, tuple) else (state,), strict=False):
            value.retain_grad()
            kept.setdefault(name, []).append(value)
    loss_of(task, readout(kept["hidden"][-1]), y).backward()
    return {name: geometric([one.grad for one in reversed(values)]) for name, values in kept.items()}


def forget_of(model: nn.Module, task: Task) -> float:
    """Mean log10 of the forget gate, over units, steps and sequences."""
    core, (x, _) = copy.deepcopy(model.recurrent).double(), drawn(task, 7, 32)
    loop = unroll(core, x.transpose(0, 1))
    gates = torch.stack([loop.sites["l0"].nodes["gates"][t] for t in range(T)])
    return float(torch.sigmoid(gates[..., H : 2 * H]).log10().mean().detach())


def timestep_clips(model: nn.Module, task: Task) -> dict[float, float]:
    """Fraction to what reaches the first step with every ∂L/∂(pre-activation) clamped, over that without."""
    x, y = drawn(task, 7, 32)
    y = y.double() if y.is_floating_point() else y
    model = copy.deepcopy(model).double()

    def curve(threshold: float) -> tuple[np.ndarray, np.ndarray]:
        loop = unroll(model.recurrent, x.transpose(0, 1))
        for node in loop.sites["l0"].nodes["gates"].values():
            node.register_hook(lambda gradient: gradient.clamp(-threshold, threshold))
        loop.differentiate(loss_of(task, model.readout(loop.output[-1]), y))
        norms = loop.sites["l0"].gradients["hidden"].norm(dim=2).numpy()
        return norms[0], norms[-1]

    first, last = curve(math.inf)
    typical = np.exp(np.log(last).mean()) / math.sqrt(H)
    return {f: float(np.exp(np.mean(np.log(curve(f * typical)[0]) - np.log(first)))) for f in FRACTIONS}


def trained(model: nn.Module, task: Task, one: Experiment) -> list[float]:
    settings, losses = one.settings, []
    if settings.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), settings.learning_rate, momentum=0.9)
    batches = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        x, y = task.draw(batches, settings.batch_size)
        loss = loss_of(task, model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if settings.clip is not None:
            norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
            for p in model.parameters():
                p.grad *= min(1.0, settings.clip / (float(norm) + 1e-6))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def measured(one: Experiment) -> Own:
    task = build_task(one.task, one.length)
    model, own = one.build(task), Own()
    own.curves |= {("start", name): curve for name, curve in adjoints(model, task).items()}
    if one.model.startswith("lstm"):
        own.forget = forget_of(model, task)
    if one.model in ("rnn", "rnn-gain-2"):
        own.clipped = timestep_clips(model, task)
    if "gain" in one.model:
        values = torch.linalg.svdvals(model.recurrent.weight_hh_l0)
        np.testing.assert_allclose(values.detach(), float(one.model.rpartition("-")[2]), rtol=1e-5)
    if one.trained:
        own.losses = trained(model, task, one)
        own.curves |= {("end", name): curve for name, curve in adjoints(model, task).items()}
        with torch.no_grad():
            x, y = task.held_out
            own.held_out = float(loss_of(task, model(x), y))
            own.accuracy = float((model(x).argmax(-1) == y).double().mean()) if task.metric == "accuracy" else math.nan
            x, y = drawn(task, 9, len(x))
            own.train_loss = float(loss_of(task, model(x), y))
    return own


@cache
def every(task: str, model: str, clip: float | str | None = "adam") -> list[Own]:
    """By seed; ``clip`` selects trainings by SGD."""
    optimizer = "adam" if clip == "adam" else "sgd"
    chosen = [
        one
        for one in experiments(quick=True)
        if (one.task, one.model, one.settings.optimizer) == (task, model, optimizer)
        and (clip == "adam" or one.settings.clip == clip)
    ]
    assert [one.settings.seed for one in chosen] == list(range(SEEDS))
    assert {(one.length, one.hidden_size) for one in chosen} == {(T, H)}
    return [measured(one) for one in chosen]


# --- the questions ---------------------------------------------------------------------------------------------------

#: Weights and biases of the recurrent layer, for one input, by what the papers say of each.
CORE = {
    "rnn": H + H * H + 2 * H,
    "lstm": 4 * (H + H * H + 2 * H),
    "gru": 3 * (H + H * H + 2 * H),
    "peephole": 4 * (H + H * H + H) + 3 * H,
    "coupled": 3 * (H + H * H + H),
}
WINDOW = (T * H + H) + (H * H + H) + (H + 1)


def task_of(where: str) -> str:
    return next(task for task in ("sunspots", "digits") if task in where)


def when_of(where: str) -> str:
    return "end" if "after training" in where else "start"


def network_of(where: str) -> str:
    """The network that a condition names."""
    named = {
        "forget bias 1": "lstm-forget1", "chrono": "lstm-chrono", "by default": "lstm", "held at .98": "lstm-pinned",
        "the LSTM": "lstm", "the RNN": "rnn", "the GRU": "gru", "the LRU": "lru", "the minGRU": "mingru",
        "values of 1.5": "rnn-gain-1.5", "values of 2": "rnn-gain-2",
    }  # fmt: skip
    return next(model for words, model in named.items() if words in where)


def reaches(model: str) -> Callable[[str], list[float]]:
    return lambda where: [own.reach(when_of(where)) for own in every(task_of(where), model)]


def rates(model: str, other: str) -> Callable[[str], list[float]]:
    def difference(where: str) -> list[float]:
        pairs = zip(every(task_of(where), model), every(task_of(where), other), strict=True)
        return [a.rate(when_of(where)) - b.rate(when_of(where)) for a, b in pairs]

    return difference


def losses(model: str, other: str) -> Callable[[str], list[float]]:
    def ratio(where: str) -> list[float]:
        one = model or network_of(where)
        return [
            a.held_out / b.held_out
            for a, b in zip(every(task_of(where), one), every(task_of(where), other), strict=True)
        ]

    return ratio


def stacked(where: str) -> list[float]:
    layer = "hidden" if "lower" in where else "hidden 1"
    pairs = zip(every("sunspots", "rnn-stacked"), every("sunspots", "rnn"), strict=True)
    return [a.rate(when_of(where), layer) - b.rate(when_of(where)) for a, b in pairs]


def both_ways(where: str) -> list[float]:
    lag = T - 1 if "first timestep" in where else T // 2 - 1
    found = [own.curves["start", "input"] for own in every(task_of(where), "rnn-bidirectional")]
    return [10.0 ** (curve[lag] - curve[0]) for curve in found]


def one_gate(where: str) -> list[float]:
    gate = {"input": "i", "candidate": "g", "output": "o"}[re.search(r"the (\w+)", where)[1]]
    plain, opened, forget = (every("digits", f"lstm{name}") for name in ("", f"-{gate}-plus-1", "-f-plus-1"))
    return [
        (b.rate("start") - a.rate("start")) / (c.rate("start") - a.rate("start"))
        for a, b, c in zip(plain, opened, forget, strict=True)
    ]


def hidden_over_cell(where: str) -> list[float]:
    return [own.reach("start", "hidden") / own.reach("start", "cell") for own in every("digits", network_of(where))]


def along_the_cell(where: str) -> list[float]:
    found = [own.curves for own in every("digits", network_of(where))]
    when = when_of(where)
    return [10.0 ** (curves[when, "cell path"][T // 2] - curves[when, "cell"][T // 2]) for curves in found]


def over_predicted(where: str) -> list[float]:
    return [own.rate("start") / own.forget for own in every("digits", network_of(where))]


def gaps(where: str) -> list[float]:
    pairs = zip(every(task_of(where), "gru"), every(task_of(where), "lstm"), strict=True)
    return [(a.held_out - a.train_loss) - (b.held_out - b.train_loss) for a, b in pairs]


def last_losses(where: str) -> list[float]:
    clipped, free = (every("sunspots", "rnn-gain-2", clip) for clip in (float(where.split()[-1]), None))
    return [a.losses[-1] / b.losses[-1] for a, b in zip(clipped, free, strict=True)]


def timestep(model: str, clip: float | str | None) -> Callable[[str], list[float]]:
    def share(where: str) -> list[float]:
        fraction = float(re.search(r"timestep at ([\d.]+)", where)[1])
        return [own.clipped[fraction] for own in every("sunspots", model, clip)]

    return share


def brought_back(where: str) -> list[float]:
    if "timestep" in where:
        return timestep("rnn", "adam")(where)
    clipped, free = (every("digits", "rnn", clip) for clip in (float(where.split()[-1]), None))
    return [a.reach("end") / b.reach("end") for a, b in zip(clipped, free, strict=True)]


#: How a statement begins, to the values that each of its conditions has.
OWN: dict[str, Callable[[str], list[float]]] = {
    "A recurrent network needs fewer parameters": lambda where: [
        (CORE["lstm" if "LSTM" in where else "rnn"] + H + 1) / WINDOW
    ] * SEEDS,
    "A recurrent network predicts sequences better": losses("", "window"),
    "Through a fully connected network": reaches("window"),
    "The gradient of a plain RNN vanishes": reaches("rnn"),
    "An orthogonal recurrent matrix keeps": reaches("rnn-orthogonal"),
    "Where the gradient vanishes at initialisation": lambda where: [
        own.accuracy for own in every("digits", network_of(where))
    ],
    "Stacking recurrent layers": stacked,
    "Reading in both directions": both_ways,
    "An LSTM preserves": lambda where: reaches(network_of(where))(where),
    "A forget bias of 1": rates("lstm-forget1", "lstm"),
    "Of the gates of an LSTM": one_gate,
    "∂L/∂h shows how far back": hidden_over_cell,
    "The gradient of an LSTM travels": along_the_cell,
    "The average forget gate": over_predicted,
    "Peepholes let": rates("peephole", "lstm"),
    "Coupling the forget gate": lambda where: [
        CORE["coupled"] / CORE["peephole" if "peepholes" in where else "lstm"]
    ] * SEEDS,
    "Coupled gates predict": losses("coupled", "lstm"),
    "A GRU has three quarters": lambda where: [CORE["gru"] / CORE["lstm"]] * SEEDS,
    "A GRU predicts as well": losses("gru", "lstm"),
    "With fewer parameters": gaps,
    "The gradient of a GRU reaches further": rates("gru", "lstm"),
    "A recurrence that is linear": lambda where: reaches(network_of(where))(where),
    "Recurrent weights that are too large": lambda where: reaches(network_of(where))(where),
    "Clipping the norm tames": last_losses,
    "Clipping every timestep tames": timestep("rnn-gain-2", None),
    "Clipping brings a vanished gradient back": brought_back,
}  # fmt: skip


@pytest.fixture(scope="module")
def claims(held) -> list[Claim]:
    results, _ = held
    return [statement.put_to(results) for chapter in TEXTBOOK.values() for statement in chapter]


def own_values(claim: Claim) -> list[list[float]]:
    (measure,) = [found for begins, found in OWN.items() if claim.statement.startswith(begins)]
    return [measure(answer.asked.where) for answer in claim.answers]


def test_every_number_of_the_lecture_is_that_of_autograd_and_plain_trainings(claims: list[Claim]) -> None:
    assert len(claims) == len(OWN)
    for claim in claims:
        for answer, own in zip(claim.answers, own_values(claim), strict=True):
            np.testing.assert_allclose(answer.values, own, rtol=1e-4, atol=1e-9, err_msg=f"{claim.statement} {answer}")


# --- the tables of the zoo -------------------------------------------------------------------------------------------


def holds(cell: str, values: list[float], log: bool = False) -> bool:
    """Whether a cell has the mean of the values, and below it the interval over the seeds."""
    with np.errstate(divide="ignore"):
        scaled = np.log10(values) if log else np.array(values)
    if np.isnan(scaled).any():
        return cell == "–"
    back: Callable[[float], float] = (lambda value: 10.0**value) if log else float
    first, _, around = cell.replace("−", "-").partition("\n")
    same = float(first) == pytest.approx(back(scaled.mean()), rel=0.06, abs=1e-12)
    if not around:
        return same
    ends = stats.t.interval(0.95, len(scaled) - 1, scaled.mean(), stats.sem(scaled))
    return same and [float(end) for end in around.split(" to ")] == pytest.approx(list(map(back, ends)), rel=0.06)


def test_the_tables_of_the_zoo_hold_what_each_network_came_to(held) -> None:
    tables = tell(*held).chapters[0].tables
    told = 0
    for title, table in tables:
        task = task_of(title)
        for _, row in table.iterrows():
            own = every(task, row["network"])
            columns: dict[str, tuple[list[float], bool]] = {
                "training loss": ([one.train_loss for one in own], False),
                "held-out loss": ([one.held_out for one in own], False),
                "gap": ([one.held_out - one.train_loss for one in own], False),
                "held-out accuracy": ([one.accuracy for one in own], False),
            }
            for when, words in (("start", "at initialisation"), ("end", "after training")):
                columns[f"reach {words}"] = [one.reach(when) for one in own], True
                if f"rate {words}" in row and np.isfinite([one.curves[when, ""] for one in own]).all():
                    columns[f"rate {words}"] = [one.rate(when) for one in own], False
            for column, (values, log) in columns.items():
                if column in row:
                    told += 1
                    assert holds(row[column], values, log), (title, row["network"], column, row[column], values)
    assert told > 150


# --- the sentences ---------------------------------------------------------------------------------------------------

HEADS = {
    "holds": "holds",
    "makes no difference": "no difference",
    "does not hold": "does not hold",
    "is open": "open",
}


def mean_and_class(answer: Answered) -> tuple[float, tuple[float, float] | None, str]:
    """The mean and Student's interval over the seeds, and what they decide, from the question's own numbers."""
    asked, at = answer.asked, np.array(answer.values)  # which the test above has recomputed
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(at) if asked.log else at
    back: Callable[[float], float] = math.exp if asked.log else float
    if not np.isfinite(scaled).all():
        return float("nan"), None, "open"
    if np.ptp(scaled) < 1e-12:
        low = high = back(scaled[0])
    else:
        low, high = map(back, stats.t.interval(0.95, len(at) - 1, scaled.mean(), stats.sem(scaled)))
    mean = back(scaled.mean())
    bound = asked.low if math.isfinite(asked.low) else asked.high
    nearer = (bound / asked.margin, bound * asked.margin) if asked.log and asked.margin else (
        bound - asked.margin, bound + asked.margin
    )  # fmt: skip
    if asked.low < low and high < asked.high:
        return mean, (low, high), "holds"
    if asked.margin and nearer[0] < low <= bound <= high < nearer[1]:
        return mean, (low, high), "no difference"
    if high <= asked.low or low >= asked.high:
        return mean, (low, high), "does not hold"
    return mean, (low, high), "open"


def segments(found: str) -> list[tuple[str, str]]:
    """``Holds a (1); is open b (2; 1 to 3).`` as the class and the conditions of each part."""
    parts = re.split(r"; (?![^()]*\))", found.rstrip("."))
    told = []
    for part in parts:
        words = part[:1].lower() + part[1:]
        head = next(head for head in HEADS if words.startswith(head))
        told.append((HEADS[head], words.removeprefix(head).strip()))
    return told


def names(condition: str, answer: Answered) -> bool:
    """Whether a condition, as it is printed, is one of this answer's: it names all that it says of it."""
    return " ".join(text for text in answer.asked.at if text and text in condition) == condition


def printed(text: str) -> float:
    return math.nan if text == "no number" else float(text.replace("−", "-"))


NUMBER = r"(no number|infinity|−?\d[\d.]*(?:e-?\d+)?)"


def check_sentence(claim: Claim) -> Counter[str]:
    """Each condition that is named has the outcome, and each number, that the values have."""
    own = list(map(mean_and_class, claim.answers))
    seen, told = [], Counter()
    for outcome, conditions in segments(claim.found):
        for condition, shown in re.findall(r"(.*?) ?\(([^()]*)\)(?:, | and |$)", conditions):
            of = [i for i, answer in enumerate(claim.answers) if own[i][2] == outcome and names(condition, answer)]
            assert of, (claim.found, condition)
            # No other answer goes by that name.
            assert all(own[i][2] == outcome for i, answer in enumerate(claim.answers) if names(condition, answer))
            seen += of
            told[outcome] += 1
            span = re.search(rf"{NUMBER}(?: to {NUMBER})?", shown)
            means = [own[i][0] for i in of]
            ends = [span[1], span[2] or span[1]]
            assert list(map(printed, ends)) == pytest.approx([min(means), max(means)], rel=0.06, abs=1e-9, nan_ok=True)
            around = re.search(rf"; {NUMBER} to {NUMBER}$", shown)
            if around:
                assert outcome == "open"
                told["interval"] += 1
                assert [printed(around[1]), printed(around[2])] == pytest.approx(own[of[0]][1], rel=0.06)
    assert sorted(seen) == list(range(len(claim.answers))), claim.found  # every condition once
    return told


def test_the_sentence_of_every_claim_names_what_was_found_where(claims: list[Claim]) -> None:
    told: Counter[str] = Counter()
    for claim in claims:
        told += check_sentence(claim)
        classes = {mean_and_class(answer)[2] for answer in claim.answers}
        outcome = (
            "confirmed" if classes == {"holds"} else "refined" if "holds" in classes
            else "undetermined" if classes == {"open"} else "refuted"
        )  # fmt: skip
        assert claim.sentence == f"{outcome.capitalize()}. {claim.found}"
        told[outcome] += 1
    assert {"holds", "does not hold", "open", "interval", "confirmed", "refined", "refuted", "undetermined"} <= set(
        told
    )
