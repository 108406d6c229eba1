"""Several trainings at once: every record is there, and none is another model's."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import gradscope
from gradscope.capture.training.life import _open as open_recorders
from gradscope.capture.training.telling import GradscopeWarning
from tests import remains
from tests.torture.nursery import end
from tests.torture.outcome import Outcome

PROMISE = "threads, forks and dropped recorders: every record is there, none is another's"
STEPS = 8
_SECONDS = 120.0


class Looped(nn.Module):
    """A loop by hand, found by data flow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[1], 4)
        for x_t in x:
            h = torch.tanh(self.outer(x_t) + self.inner(h))
        return h


class Layered(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


MODELS: tuple[Callable[[], nn.Module], ...] = (
    lambda: Layered(nn.LSTM),
    Looped,
    lambda: Layered(nn.GRU),
    lambda: Layered(nn.RNN),
)


class Training:
    """A training with data and weights of its own, whatever other threads draw."""

    def __init__(self, number: int, scaled: bool = False) -> None:
        torch.manual_seed(number)
        self.model = MODELS[number % len(MODELS)]()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.data = [torch.randn(5 + number, 3, 3) for _ in range(STEPS)]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**number, enabled=scaled)

    def begin(self, run: Path) -> gradscope.Recorder:
        return gradscope.record(self.model, run, optimizer=self.optimizer, every=1, samples=None)

    def train(self, recorder: gradscope.Recorder | None) -> None:
        for step, x in enumerate(self.data):
            self.optimizer.zero_grad()
            self.scaler.scale(self.model(x).pow(2).mean()).backward()
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.01)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if recorder is not None:
                recorder.log(step=step)

    def left(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def _same_as_alone(number: int, run: Path, left: list[Tensor], scaled: bool = False) -> None:
    """Compare with the same training recorded with nothing beside it, and with one that is not recorded."""
    alone, plain = run.with_name(f"{run.name}-alone"), Training(number, scaled)
    plain.train(None)
    assert all(torch.equal(a, b) for a, b in zip(left, plain.left(), strict=True)), "the training was changed"
    twin = Training(number, scaled)
    with twin.begin(alone) as recorder:
        twin.train(recorder)
    found, expected = gradscope.open_run(run), gradscope.open_run(alone)
    assert found.lost == {}, found.lost
    assert found.sites == expected.sites, (list(found.sites), list(expected.sites))
    for site in expected.sites:
        for quantity in ("hidden", "direct"):
            ours, its = found.norms(site, quantity), expected.norms(site, quantity)
            assert ours["step"].nunique() == STEPS, f"{site}: steps {sorted(set(ours['step']))}"
            assert ours.equals(its), f"{site} {quantity} differs"
    columns = ["step", "norm_before", "threshold", "loss_scale", "place"]
    assert found.clips()[columns].equals(expected.clips()[columns]), "clipping differs"
    assert sorted(set(found.steps()["step"])) == list(range(STEPS))


def _recorded(training: Training, run: Path, ended: threading.Event) -> None:
    """Record a training, and tell other threads when it has ended, whatever became of it."""
    try:
        with training.begin(run) as recorder:
            training.train(recorder)
    finally:
        ended.set()


def _in_threads(*actions: Callable[[], Any]) -> None:
    """Run these side by side, and raise what one of them raised."""
    failed: list[BaseException] = []
    ready = threading.Barrier(len(actions))

    def run(action: Callable[[], Any]) -> None:
        try:
            ready.wait(_SECONDS)
            action()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    if failed:
        raise failed[0]


def several(scratch: Path, count: int = 4, made_there: bool = True, scaled: bool = False) -> None:
    """As many models in as many threads, each with a recorder, made in its thread or all in the main one."""
    trainings = [Training(number, scaled) for number in range(count)]
    runs = [scratch / str(number) for number in range(count)]
    made = [] if made_there else [training.begin(run) for training, run in zip(trainings, runs, strict=True)]

    def one(number: int) -> None:
        recorder = made[number] if made else trainings[number].begin(runs[number])
        with recorder:
            trainings[number].train(recorder)

    _in_threads(*[lambda number=number: one(number) for number in range(count)])  # type: ignore[misc]
    made.clear()
    for number, run in enumerate(runs):
        _same_as_alone(number, run, trainings[number].left(), scaled)


def beside_others(scratch: Path) -> None:
    """One is recorded, three are not."""
    trainings = [Training(number) for number in range(4)]

    def recorded() -> None:
        with trainings[0].begin(scratch / "run") as recorder:
            trainings[0].train(recorder)

    _in_threads(recorded, *[lambda one=one: one.train(None) for one in trainings[1:]])  # type: ignore[misc]
    _same_as_alone(0, scratch / "run", trainings[0].left())


def opened_and_closed(scratch: Path) -> None:
    """Recorders come and go in three threads while a fourth trains."""
    training, ended = Training(0), threading.Event()

    def comes_and_goes(number: int) -> None:
        turn = 0
        while not ended.is_set():
            turn += 1
            other = Training(number)
            with other.begin(scratch / f"{number}-{turn}") as recorder:
                other.train(recorder)

    _in_threads(
        partial(_recorded, training, scratch / "run", ended),
        *(partial(comes_and_goes, number) for number in (1, 2, 3)),
    )
    _same_as_alone(0, scratch / "run", training.left())


def hooks_of_others(scratch: Path) -> None:
    """Another tool's hooks come and go in another thread."""
    training, ended = Training(2), threading.Event()

    def tool() -> None:
        while not ended.is_set():
            handles = [register_module_forward_hook(lambda *_: None)]
            time.sleep(0)
            for handle in handles:
                handle.remove()

    _in_threads(partial(_recorded, training, scratch / "run", ended), tool)
    _same_as_alone(2, scratch / "run", training.left())


def hooks_made_meanwhile(scratch: Path) -> None:
    """Hooks that another tool registers while a recorder is open are called, and can be removed after it is closed."""
    training, seen = Training(0), list[str]()
    with training.begin(scratch / "run") as recorder:
        handles = [
            register_optimizer_step_pre_hook(lambda *_: seen.append("before")),
            register_optimizer_step_post_hook(lambda *_: seen.append("after")),
        ]
        training.train(recorder)
    Training(0).train(None)
    assert seen == ["before", "after"] * STEPS * 2
    for handle in handles:
        handle.remove()
    Training(0).train(None)
    assert len(seen) == STEPS * 4


def thread_within(scratch: Path) -> None:
    """The recorder is made here, the training runs in a thread of its own."""
    training = Training(1)
    with training.begin(scratch / "run") as recorder:
        _in_threads(lambda: training.train(recorder))
    _same_as_alone(1, scratch / "run", training.left())


def moves(scratch: Path) -> None:
    """A training goes on in one thread after the other, beside one that stays."""
    training, other = Training(0), Training(3)
    data = training.data
    with training.begin(scratch / "run") as recorder, other.begin(scratch / "other") as beside:
        for x in data:
            training.data = [x]
            _in_threads(lambda: training.train(None))
        other.train(beside)
        for step in range(STEPS):
            recorder.log(last=step)
    found = gradscope.open_run(scratch / "run")
    assert found.records("layer/l0")["step"].tolist() == list(range(STEPS))
    _same_as_alone(3, scratch / "other", other.left())


def closed_by_another(scratch: Path) -> None:
    """Another thread flushes all the time, and closes at the end."""
    training, ended = Training(0), threading.Event()
    recorder = training.begin(scratch / "run")

    def trains() -> None:
        try:
            training.train(recorder)
        finally:
            ended.set()

    def flushes() -> None:
        while not ended.is_set():
            recorder.flush()
        recorder.close()

    _in_threads(trains, flushes)
    _same_as_alone(0, scratch / "run", training.left())


def closed_in_the_middle(scratch: Path) -> None:
    """Another thread closes while a step is under way: what was recorded is there, and nothing stays."""
    training = Training(0)
    recorder = training.begin(scratch / "run")
    _in_threads(lambda: training.train(None), recorder.close)
    found = gradscope.open_run(scratch / "run")
    assert found.sealed
    assert gradscope.store.validate(scratch / "run") == []
    # Python sets handlers of signals in the main thread only: they are put back with the next recorder there.
    Training(0).begin(scratch / "last").close()


def snapshot_beside(scratch: Path) -> None:
    """Another model is looked at on demand meanwhile."""
    training, other = Training(0), Training(3)

    def recorded() -> None:
        with training.begin(scratch / "run") as recorder:
            training.train(recorder)

    def looks() -> None:
        for x in other.data:
            taken = gradscope.snapshot(other.model, lambda x=x: other.model(x).pow(2).mean())  # type: ignore[misc]
            assert list(taken.sites) == ["layer/l0"], list(taken.sites)

    _in_threads(recorded, looks)
    _same_as_alone(0, scratch / "run", training.left())


def forked(scratch: Path, trains: bool = False) -> None:
    """A child is forked while another thread is in the recorder: it ends, and may train; the run is the parent's."""
    training, ended = Training(0), threading.Event()
    codes: list[int] = []

    def forks() -> None:
        while not ended.is_set() and len(codes) < 10:
            child = os.fork()
            if child == 0:
                _in_child(trains)
            codes.append(end(child, _SECONDS))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python says of any fork beside threads that it may hang
        _in_threads(partial(_recorded, training, scratch / "run", ended), forks)
    assert set(codes) <= {0}, codes
    _same_as_alone(0, scratch / "run", training.left())


def _in_child(trains: bool) -> None:
    try:
        for recorder in open_recorders:
            recorder.close()
        gc.collect()
        if trains:
            one = Training(2)
            one.train(None)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


class _Data(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, number: int) -> Tensor:
        return Training(0).data[number]


def loaded_by_workers(scratch: Path, start: str = "fork") -> None:
    """Data come from worker processes."""
    training = Training(0)
    context = multiprocessing.get_context(start)
    with training.begin(scratch / "run") as recorder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = torch.utils.data.DataLoader(_Data(), batch_size=None, num_workers=2, multiprocessing_context=context)
        training.data = list(loader)
        training.train(recorder)
    _same_as_alone(0, scratch / "run", training.left())


def dropped(scratch: Path, cycle: bool = False, graph: bool = False) -> None:
    """A recorder is dropped without close: nothing of it stays, the run is sealed."""
    before = remains.snapshot()
    training = Training(0)
    recorder = training.begin(scratch / "run")
    training.train(recorder)
    held = weakref.ref(recorder)
    kept: list[Any] = [training.model(training.data[0]).sum()] if graph else []
    if cycle:
        holder: list[Any] = [recorder]
        holder.append(holder)
        del holder
    del recorder
    if cycle:
        gc.collect()
    assert held() is None, "it is still held"
    left = training.left()
    kept.clear()
    del training, held
    found = remains.settled({k: v for k, v in before.items() if k != "objects"})
    assert not found, found
    assert gradscope.open_run(scratch / "run").sealed
    _same_as_alone(0, scratch / "run", left)


def dropped_in_a_thread(scratch: Path) -> None:
    """The same in four threads that end with their recorders."""
    trainings = [Training(number) for number in range(4)]

    def one(number: int) -> None:
        recorder = trainings[number].begin(scratch / str(number))
        trainings[number].train(recorder)

    _in_threads(*[lambda number=number: one(number) for number in range(4)])  # type: ignore[misc]
    for number, training in enumerate(trainings):
        _wait_until_sealed(scratch / str(number))
        _same_as_alone(number, scratch / str(number), training.left())


def _wait_until_sealed(run: Path) -> None:
    end = time.monotonic() + _SECONDS
    while not gradscope.open_run(run).sealed:
        assert time.monotonic() < end
        time.sleep(0.01)


def cases(rounds: int = 20) -> list[tuple[str, Callable[[Path], None]]]:
    """Return all cases by name."""
    found: list[tuple[str, Callable[[Path], None]]] = [
        ("2 models in 2 threads", lambda scratch: several(scratch, 2)),
        ("8 models in 8 threads", lambda scratch: several(scratch, 8)),
        ("4 models in 4 threads, recorders made before", lambda scratch: several(scratch, made_there=False)),
        ("4 models in 4 threads, each with a loss scale", lambda scratch: several(scratch, scaled=True)),
        ("a dropped recorder in a cycle", lambda scratch: dropped(scratch, cycle=True)),
        ("a dropped recorder, a graph kept", lambda scratch: dropped(scratch, graph=True)),
        ("forked children that train", lambda scratch: forked(scratch, trains=True)),
        ("workers that are spawned", lambda scratch: loaded_by_workers(scratch, "spawn")),
    ]
    plain = (
        beside_others, opened_and_closed, hooks_of_others, hooks_made_meanwhile, thread_within, moves,
        closed_by_another, closed_in_the_middle, snapshot_beside, forked, loaded_by_workers, dropped,
        dropped_in_a_thread,
    )  # fmt: skip
    found += [(one.__name__.replace("_", " "), one) for one in plain]
    found += [(f"4 models in 4 threads, round {turn + 1}", several) for turn in range(rounds)]
    return found


def run(scratch: Path, count: int | None = None) -> Outcome:
    """Try every case, or ``count`` of them evenly spread."""
    every = cases()
    chosen = every if count is None else every[:: max(1, len(every) // count)][:count]
    fell_short = []
    for number, (name, case) in enumerate(chosen):
        place = scratch / str(number)
        place.mkdir()
        try:
            attempt(case, place)
        except BaseException as error:
            fell_short.append(f"{name}: {type(error).__name__}: {error}")
        shutil.rmtree(place, ignore_errors=True)
    return Outcome(PROMISE, len(chosen), fell_short)


def attempt(case: Callable[[Path], None], scratch: Path) -> None:
    """Run one case; no warning, and nothing stays in the process."""
    Training(0).train(None)  # what torch imports at first use
    resource_tracker.ensure_running()  # Python's, for processes that are spawned
    with remains.frozen():
        before = remains.snapshot()
        with warnings.catch_warnings():
            warnings.simplefilter("error", GradscopeWarning)
            case(scratch)
        found = remains.settled(before)
        assert not found, found
