"""A step as it happened: one ordered account of passes, clipping calls and the update.

Everything that is written of a step follows from here: which passes fed the update and which were dropped, another
loss's, or a closure's further evaluations; which clipping calls acted on the gradient that was applied; where the step
ends. A step ends with the update: by an optimizer (several may share a step), by ``recorder.step()``, or by hand, seen
from the parameters' having changed after a pass. A gradient that was made ready and then zeroed is a step that the
script skipped.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradscope.capture.calls import passes
from gradscope.capture.calls.home import Home
from gradscope.capture.calls.passes import Pass
from gradscope.capture.guard import entry
from gradscope.capture.torch_private import remove_global_hook
from gradscope.capture.training.attempts import Attempts
from gradscope.capture.training.clips import ClipNote
from gradscope.capture.training.gradients import GradientBook, Movement, PassNote
from gradscope.capture.training.rounds import Rounds
from gradscope.capture.training.scaling import Scales
from gradscope.capture.training.updates import Updates, held_optimizers, living_optimizers, parameters_of

UPDATE, DROPPED, OTHER, EVALUATION = range(4)
_BETWEEN = "between two steps"

#: Gradients for attribution that are kept of one step: a script may take thousands after its last update.
KEPT_ASIDE = 64
#: Passes that are kept of one step once their gradients have been dropped, or reach no parameter: no update may come.
KEPT_DROPPED = 1024


class Keeper(Protocol):
    """Who keeps what the account finds: the recorder."""

    @property
    def recording(self) -> bool:
        """Whether the current step is recorded."""
        ...

    @property
    def faulted(self) -> bool:
        """Whether anything of gradscope's own has failed."""
        ...

    def step_ends(self, skipped: bool, late: bool) -> None:
        """Write what belongs to the step. ``late``: forward calls of the next one have been made already."""
        ...

    def iteration_ends(self) -> None:
        """Keep apart what belongs to an iteration that may turn out to have been a step."""
        ...

    def iterations_were_steps(self, count: int) -> Iterator[None]:
        """Yield for each of so many kept iterations, with what belongs to it in place."""
        ...

    def entering(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Take the forward call before which a step ended."""
        ...

    def pass_ended(self, note: PassNote) -> None:
        """Take the end of a pass."""
        ...

    def updated_by_hand(self) -> None:
        """Take an update that is over: its gradients may have been zeroed since."""
        ...

    def measure(self, parameters: list[Tensor], again: bool) -> None:
        """Measure gradients as an update is about to use them."""
        ...

    def within(self, doing: str, action: Callable[..., Any], *args: Any) -> Any:
        """Keep errors of ``action`` out of the training; None where there was one."""
        ...

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        ...

    def say(self, what: str, message: str) -> None:
        """Tell the user, once for each ``what``."""
        ...


class Account:
    """The account of the current step, and how steps follow each other.

    Parameters
    ----------
    model : nn.Module
    around : nn.Module
        The model as the script has it: perhaps wrapped.
    optimizers : sequence of Optimizer
        Whose updates are steps; without any, whoever updates the model's parameters.
    keeper : Keeper
        Held as it is given: weakly, if it holds the account.
    home : Home

    Attributes
    ----------
    passes : list of PassNote
        Of the current step, in order.
    clips : list of ClipNote
        Calls whose place in the step is open.
    order : deque of str
        What happened in the step last, in words.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        keeper: Keeper,
        around: nn.Module,
        home: Home,
    ) -> None:
        self._model, self._keeper, self._home = model, keeper, home
        # A wrapper may hold the parameters in another form (FSDP).
        self._own = {id(p) for module in (model, around) for p in module.parameters()}
        self.passes: list[PassNote] = []
        self.clips: list[ClipNote] = []
        self.order: deque[str] = deque(maxlen=KEPT_DROPPED)
        self.book = GradientBook(model.parameters())
        self.scales = Scales()
        self._rounds = Rounds(self._round_ends, self._entering, home, self.harmed)
        # Inner optimizer to the one that holds it: a step of either is the holder's.
        self._holders: weakref.WeakKeyDictionary[torch.optim.Optimizer, Any] = weakref.WeakKeyDictionary()
        self._ids: weakref.WeakKeyDictionary[torch.optim.Optimizer, Any] = weakref.WeakKeyDictionary()
        self._known: list[weakref.ref[torch.optim.Optimizer]] = []
        #: How updates are known: "optimizer", "mark" (recorder.step) or "hand"; empty before the first.
        self.by = ""
        self._running: list[Pass] = []
        self._note: PassNote | None = None
        self._evaluation = 0
        self._elsewhere = False
        self._asides = 0
        self._attempts = Attempts()
        #: Whether the script has made the gradient of this step of several that it dropped.
        self._placed = False
        self._moved: Movement | None = None
        self._waiting: Any = None
        self._ends_after_pass: bool | None = None
        self._measured = False
        self._ended_before = False
        self._ended_count = 0
        self._stepped: set[int] = set()
        self._updated: frozenset[int] = frozenset()
        self.seen_passes = 0
        #: Whether passes of the step have been forgotten.
        self.forgot = False
        #: Whether parameters have been updated, by whomever.
        self.any_update = False
        self._told_any = False
        for optimizer in optimizers:
            if self._trains(optimizer):
                self.follow(optimizer)
            else:
                keeper.say(
                    "optimizer",
                    f"none of the parameters of the {type(optimizer).__name__} that was given is the model's; steps "
                    "are counted from the optimizer that does update the model",
                )
        self._told_any = bool(self.optimizers)
        self._updates = Updates(self, self._within)

    def attach(self) -> None:
        """Begin to see what happens."""
        self._updates.open()
        passes.observe(self)

    def kept_by(self, keeper: Keeper) -> None:
        """Take another one: a keeper that is about to go is no more what it was given as."""
        self._keeper = keeper

    def harmed(self, doing: str, error: Exception) -> None:
        """Take an error of gradscope's own."""
        self._keeper.harmed(doing, error)

    def _within(self, doing: str, action: Callable[..., Any], *args: Any) -> Any:
        return self._keeper.within(doing, action, *args)

    def _entering(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return self._keeper.entering(module, args)

    def close(self) -> None:
        """End a step that is complete."""
        self.settle()
        self._rounds.finish()

    def detach(self) -> None:
        """See no more; may be repeated."""
        self._wait(False)
        self._rounds.forget()
        passes.ignore(self)
        self._updates.close()

    def last_step(self) -> None:
        """End a step that no update has ended: its gradient was not dropped either."""
        if self.passes:
            self._end(self._rounds.any)
        self.clips, self._moved = [], None

    # -- optimizers ------------------------------------------------------------------------------------------

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take this optimizer's updates for steps of the training."""
        if optimizer in self._rounds:
            return
        for inner in held_optimizers(optimizer):
            if inner is not optimizer:
                self._holders[inner] = weakref.ref(optimizer)
        self._rounds.add(optimizer)
        self._known.append(weakref.ref(optimizer))
        given = [p for p in parameters_of(optimizer) if p.requires_grad]
        self.book.add(given)
        self._home.add(given)

    def _trains(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(id(p) in self._own for p in parameters_of(optimizer))

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The followed optimizers that still exist."""
        return [optimizer for held in self._known if (optimizer := held()) is not None]

    @property
    def optimized(self) -> list[Tensor]:
        """What the followed optimizers update, or all parameters that require a gradient."""
        if optimizers := self.optimizers:
            return list({id(p): p for o in optimizers for p in parameters_of(o)}.values())
        return [p for p in self._model.parameters() if p.requires_grad]

    def concerns(self, optimizer: torch.optim.Optimizer) -> bool:
        if self._leader(optimizer) in self._rounds:
            return True
        given = self._ids_of(optimizer)
        if not given & self._own or self.by == "mark":
            return False
        mine = self.optimizers
        if mine and not any(id(p) in given for o in mine for p in parameters_of(o)):
            return False  # the script left it out: the discriminator's beside the generator's
        self._adopt(optimizer, bool(mine))
        return True

    def _adopt(self, optimizer: torch.optim.Optimizer, instead: bool) -> None:
        """Follow an optimizer that the recorder was not told of, with those that train the same model beside it."""
        found = [optimizer] if instead else living_optimizers(p for p in self._model.parameters())
        if not any(self._leader(optimizer) is o or optimizer in held_optimizers(o) for o in found):
            found = [optimizer]
        for one in found:
            self.follow(one)
        names = " and ".join(type(one).__name__ for one in found)
        why = "it took over parameters of the one before" if instead else "no other optimizer of it was given"
        self._keeper.say("following", f"steps are counted from {names}, which trains the model: {why}")

    def _leader(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        held = self._holders.get(optimizer)
        return (held() if held is not None else None) or optimizer

    # -- passes ----------------------------------------------------------------------------------------------

    def pass_begins(self, begun: Pass) -> None:
        if self._home.takes(begun):
            self._keeper.within("a backward pass", self._pass_begins, begun)

    def _pass_begins(self, begun: Pass) -> None:
        self._running.append(begun)
        if len(self._running) > 1:
            return  # inside of another: its gradients are that pass's
        self.settle(late=True)
        self._wait(False)
        # What the inputs of a pass for some leaves are is known only while it runs.
        for_parameters = not begun.asked or any(isinstance(t, Tensor) and t in self.book for t in begun.inputs)
        scaled = self.scales.of_pass(begun.roots)
        self._note = PassNote(begun.kind, for_parameters, begun.create_graph, self.evaluation, scaled)
        if scaled and self._keeper.recording:
            self._note.scale = self.scales.factor()
        self._make_room()
        self.passes.append(self._note)
        self._asides += not for_parameters
        if not for_parameters and self._asides > KEPT_ASIDE:
            self.passes.remove(self._note)  # no update can use it
        self.seen_passes += 1
        self._ended_before = False
        self.book.look(self._keeper.recording)
        self.settle_clips()

    def _make_room(self) -> None:
        """Forget the oldest pass that no update is waiting for, where a step has very many."""
        if len(self.passes) >= KEPT_DROPPED:
            oldest = next((note for note in self.passes if note.considered or not note.reached), None)
            if oldest is not None:
                self.passes.remove(oldest)
                self.forgot = True

    def pass_ends(self, ended: Pass) -> None:
        if self._home.takes(ended):
            self._keeper.within("a backward pass", self._pass_ends, ended)

    def _pass_ends(self, ended: Pass) -> None:
        if any(known is ended for known in self._running):
            while self._running.pop() is not ended:
                pass
        if self._running or self._note is None:
            return
        note = self._note
        if ended.kind == "backward":
            self.book.collect(note)
        self.order.append("pass" if ended.kind == "backward" else "gradient")
        if ended.failed and not note.reached and note in self.passes:
            self.passes.remove(note)
        self._after_pass(note)

    def _after_pass(self, note: PassNote) -> None:
        self.scales.passed(note.scaled, note.reached)
        for clip in self.clips:
            if clip.open and not clip.touches.isdisjoint(note.reached):
                clip.place = "partial"
        self._keeper.pass_ended(note)
        if self._ends_after_pass is not None:
            self._wait(True)  # what was measured in the pass may still be on its way
            return
        if self._updates.running:
            return
        if note.reached or (self.perhaps_by_hand and note.for_parameters):
            moving = self.book.first_of(note.reached or self._own, Movement.PARAMETERS)
            self._moved = Movement(moving, closely=self.perhaps_by_hand)
            self._wait(True)

    @property
    def perhaps_by_hand(self) -> bool:
        """Whether updates may be the script's own: no optimizer is known, and no mark was set."""
        return self.by == "hand" or (not self.by and not self._rounds.any)

    @property
    def evaluation(self) -> int:
        """Which evaluation of a closure runs, 0 outside of one."""
        return self._evaluation if self._updates.running else 0

    def passes_in(self, parameters: list[Tensor]) -> list[PassNote]:
        """Return the passes whose gradient is in these parameters and has not been applied."""
        if self.book.looks_at(parameters):
            return self.book.sources({id(p) for p in parameters})
        return [note for note in self.passes if not note.fed and not note.gone and note.for_parameters]

    @property
    def note(self) -> PassNote | None:
        """The pass that runs, or the last one."""
        return self._note

    @property
    def crowded(self) -> bool:
        """Whether the pass that runs is one for attribution beyond those that are kept."""
        return self._asides > KEPT_ASIDE and self._note is not None and not self._note.for_parameters

    @property
    def in_pass(self) -> bool:
        """Whether a pass runs."""
        return bool(self._running)

    def sites_of_pass(self, name: str) -> dict[str, Any]:
        """Return where to put what was measured at a site in the pass that runs, or ran last."""
        if self._note is None:
            self._note = PassNote("backward")
            self.passes.append(self._note)
        if name in self._note.sites:  # the same call once more, in a pass inside of the pass
            self._note = replace(self._note, sites={})
            self.passes.append(self._note)
        return self._note.sites

    # -- between the passes ----------------------------------------------------------------------------------

    def settle(self, late: bool = False) -> None:
        """End the step if it is over without having said so: updated by hand, or skipped."""
        if self._updates.running or len(self._running) > late or not self.passes:
            return
        if self._ends_after_pass is not None:
            skipped, self._ends_after_pass = self._ends_after_pass, None
            self._end(skipped, late)
            return
        moved = self._moved is not None and self._moved.happened()
        if moved and self.perhaps_by_hand:
            self.by, self.any_update = "hand", True
            self._use({id(p) for p in self.optimized})
            self._keeper.updated_by_hand()
            self.order.append("update by hand")
            self._end(False, late)
            return
        self.settle_clips()
        open_passes = [p for p in self.passes if p.reached and not p.fed and not p.considered and p.evaluation < 2]
        if not open_passes or not all(note.gone for note in open_passes):
            return
        self.order.append("zeroed")
        for note in open_passes:
            note.considered = True
        meant = not (moved or self._elsewhere or self.by == "mark") and self._rounds.any
        if meant and self._attempts.is_one(open_passes):
            if self._attempts.keep(open_passes):
                self._keeper.iteration_ends()
            else:
                self._skip(open_passes)
                self._end(True, late)
        self._elsewhere = self._attempts.prepared = False

    def _skip(self, dropped: list[PassNote]) -> None:
        """Take these passes for those of an update that the script skipped."""
        for note in dropped:
            note.whole = True
        for clip in self.clips:
            if clip.place == "dropped" and any(note in dropped for note in clip.notes):
                clip.place = "skipped"

    def _end_attempts(self) -> None:
        """What was kept did not come back in the update: every iteration was a step that the script skipped."""
        attempts = self._attempts.take()
        if not attempts:
            return
        passes, clips = self.passes, self.clips
        for dropped, _ in zip(attempts, self._keeper.iterations_were_steps(len(attempts)), strict=True):
            self.passes = [note for note in passes if note in dropped]
            self.clips = [clip for clip in clips if any(note in dropped for note in clip.notes)]
            passes = [note for note in passes if note not in dropped]
            clips = [clip for clip in clips if clip not in self.clips]
            self._skip(dropped)
            # The passes of those that follow have been made.
            self._keeper.step_ends(True, True)
            self._ended_count += 1
        self.passes, self.clips = passes, clips

    def prepared(self) -> None:
        """Note that the script does with the gradient what one does before an update."""
        if any(p.reached and not p.fed and not p.considered for p in self.passes):
            self._attempts.prepared = True

    def _wait(self, on: bool) -> None:
        """Look at the next forward pass: a step that ended without a word ends before it."""
        if on and self._waiting is None:
            self._waiting = register_module_forward_pre_hook(entry(self._forward, _BETWEEN))
        elif not on and self._waiting is not None:
            remove_global_hook(self._waiting)
            self._waiting = None

    def _forward(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not torch.is_grad_enabled() or self._running or not self._home.here:
            return None
        self._wait(False)
        ended = self._ended_count
        self._keeper.within(_BETWEEN, self.settle)
        return self._keeper.entering(module, args) if self._ended_count != ended else None

    # -- updates ---------------------------------------------------------------------------------------------

    def elsewhere(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._home.here:
            return  # another thread's training
        self._elsewhere = True
        for note in self.passes:
            note.elsewhere = note.elsewhere or not note.fed
        given = parameters_of(optimizer)
        if any(id(p) in self._own for p in given):
            self.book.examine()
            self.book.spend({id(p) for p in given})

    def evaluation_begins(self, number: int) -> None:
        self._wait(False)
        self._evaluation = number

    def gradient_ready(self, optimizer: torch.optim.Optimizer, first: bool) -> None:
        self._wait(False)
        if self._running and self._note is not None:
            self.book.collect(self._note)  # an optimizer that steps while the gradients come in
        elif not self.evaluation:
            self.settle_clips()
        self.book.examine()
        self._gather(self._ids_of(optimizer))
        given = parameters_of(optimizer)
        if not first:  # the inner optimizer decides which evaluation's gradient is applied
            for note in self.passes:
                if note.evaluation:
                    note.used.clear()
        self._use(self._ids_of(optimizer))
        self._measure(given, again=not first)

    def _ids_of(self, optimizer: torch.optim.Optimizer) -> frozenset[int]:
        """Return the identities of what an optimizer updates; kept, for there may be thousands."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._ids.get(optimizer)
        if known is None or known[0] != size:
            known = self._ids[optimizer] = (size, frozenset(id(p) for p in parameters_of(optimizer)))
        return known[1]

    def _measure(self, given: list[Tensor], again: bool) -> None:
        self._measured = True
        self._keeper.measure(given, again)

    def _gather(self, given: Collection[int]) -> None:
        """Let passes whose gradients were dropped feed the update where the script has put one of its own in place.

        Gradients of several losses or sequences, projected or clipped one by one and summed, come back like that.
        """
        placed = self.book.placed(given)
        gathered = [note for note in self.passes if not placed.isdisjoint(note.lost) and not note.elsewhere]
        if not gathered:
            return
        self._attempts.gather()
        for note in gathered:
            note.whole = True
        for clip in self.clips:
            # What was clipped last may have been replaced without having been zeroed.
            replaced = clip.open and not clip.anew and not placed.isdisjoint(clip.touches)
            if replaced or (clip.place == "dropped" and any(note in gathered for note in clip.notes)):
                clip.place, clip.used = "partial", True

    def placed_anew(self, parameters: Iterable[Tensor]) -> bool:
        """Whether these hold what the script made of gradients that it has dropped; said once a step."""
        placed = set() if self._placed else self.book.placed({id(p) for p in parameters})
        found = any(not placed.isdisjoint(note.lost) for note in self.passes)
        self._placed = self._placed or found
        return found

    def settle_clips(self) -> None:
        """Close the clipping calls on gradients that have been dropped since."""
        self.book.examine()
        for clip in self.clips:
            if clip.open and clip.notes and all(note.gone for note in clip.notes):
                clip.place = "dropped"

    def _use(self, given: Collection[int]) -> None:
        self.book.use(given)
        for clip in self.clips:
            if clip.open and (not clip.touches or not clip.touches.isdisjoint(given)):
                clip.used = True

    def updated(self, optimizer: torch.optim.Optimizer) -> None:
        found = getattr(optimizer, "found_inf", None)  # set by GradScaler for fused optimizers
        self._take_update(optimizer, skipped=found is not None and bool(found))

    def _take_update(self, optimizer: torch.optim.Optimizer, skipped: bool) -> None:
        self.by = self.by or "optimizer"
        self.any_update = True
        self._stepped.add(id(optimizer))
        self._updated |= self._ids_of(optimizer)
        self._evaluation = 0
        self.book.spend(self._ids_of(optimizer))
        self.order.append("skipped update" if skipped else "update")
        self._rounds.stepped(self._leader(optimizer), skipped)

    def scaled(self, scaler: torch.amp.GradScaler, outputs: Any) -> None:
        """A loss was multiplied with a loss scale."""
        if not self._home.here:
            return  # another thread's training
        self._stepped.clear()
        self.scales.scaled(scaler, outputs)

    def unscaled(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """The loss scale was divided out of an optimizer's gradients."""
        given = parameters_of(optimizer)
        if scaler.is_enabled() and any(p in self.book for p in given):
            self.prepared()
            self.scales.unscaled(given)
            self.book.edit(given)
            self.order.append("unscale")

    def scaler_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """``scaler.step`` has returned: without the optimizer's having stepped, the update was skipped."""
        if id(optimizer) not in self._stepped and self._trains(optimizer) and self.concerns(optimizer):
            self.book.examine()
            self._use(self._ids_of(optimizer))
            self._take_update(optimizer, skipped=True)

    def mark(self) -> None:
        """``recorder.step()``: the script says that a step is over."""
        if self._ends_after_pass is not None:
            self.settle()
        self._wait(False)
        if self.by != "mark" and self._rounds.pending:
            self._rounds.finish()
            return
        self._rounds.forget()
        if not self.passes and self._ended_before:
            if not self._told_any:
                self.by = "mark"  # the step that an optimizer ended just now is the same one
            return
        if not self.seen_passes and not self._keeper.faulted:
            self._keeper.say("mark", "recorder.step() before any backward pass: the step that it marks holds nothing")
        self.settle_clips()
        skipped = self._told_any and bool(self.passes) and not any(note.fed for note in self.passes)
        if not self._told_any:
            self.by = "mark"
        for note in self.passes:
            note.whole = note.whole or skipped
        self.order.append("mark")
        self.any_update = True
        if not skipped and not self._measured:
            self._use({id(p) for p in self.optimized})
            self._measure(self.optimized, again=False)
        self._end(skipped)
        self._ended_before = False

    def _round_ends(self, skipped: bool) -> None:
        if self.by == "mark":
            return
        if self._running:
            self._ends_after_pass = skipped
            return
        self._keeper.within("the end of a step", self._end, skipped)

    def _end(self, skipped: bool, late: bool = False) -> None:
        self._wait(False)
        self._end_attempts()
        if not any(note.fed for note in self.passes):
            for note in self._unaccounted():
                note.whole = True
        fed = [note for note in self.passes if note.fed]
        regular = not skipped and all(note.fed for note in self.passes if note.reached)
        for clip in self.clips:
            clip.settle(skipped)
        self._ended_count += 1
        self._ended_before = True
        try:
            self._keeper.step_ends(skipped, late)
        finally:
            self._attempts.end_step(len(fed) if regular else None, skipped)
            self.passes, self.clips = [], []
            self.order.clear()
            self._asides, self.forgot = 0, False
            self._note = self._moved = None
            self._updated = frozenset()
            self._elsewhere = self._measured = self._placed = False
            self.book.clear()
            self.scales.end_step()

    def _unaccounted(self) -> list[PassNote]:
        """The passes that must have fed an update although no parameter's gradient tells so."""
        at_hand = [n for n in self.passes if n.for_parameters and not n.gone and not n.elsewhere]
        backward = [n for n in at_hand if n.kind == "backward"]
        if backward:
            return [n for n in backward if n.evaluation <= 1]
        # A gradient that can be differentiated again was taken for another, unless it is the last.
        asked = [n for n in at_hand if n.kind == "grad"]
        return [n for n in asked[:-1] if not n.create_graph] + asked[-1:]

    def differentiated_again(self) -> set[str]:
        """Return the sites of gradients taken with ``create_graph`` before a pass that fed the update."""
        last = max((i for i, note in enumerate(self.passes) if note.fed), default=0)
        return {site for note in self.passes[:last] if note.create_graph and not note.fed for site in note.sites}

    # -- what became of a pass -------------------------------------------------------------------------------

    def roles(self, note: PassNote, sites: Iterable[str], parameters_at: Any) -> Iterator[tuple[str, int]]:
        """Yield what the pass was for each site: of sites whose parameters it reached, only those that the update used.

        A critic under the actor's loss is in a pass that fed an update, and its own gradient is dropped.
        """
        for site in sites:
            held = parameters_at(site)
            own = held & note.reached
            # Frozen for this pass only, while another part is updated: its own updates are other steps'.
            aside = not own and self._updated and self._trained(held) and not held & self._updated
            yield site, OTHER if aside else self._role(note, own)

    def _trained(self, held: Collection[int]) -> bool:
        return any(not self._ids_of(optimizer).isdisjoint(held) for optimizer in self.optimizers)

    def _role(self, note: PassNote, own: set[int]) -> int:
        if note.whole or (note.used & own if own else note.used):
            return UPDATE
        if note.evaluation > 1:
            return EVALUATION
        if note.elsewhere or note.kind == "grad" or not note.reached:
            return OTHER
        return DROPPED if (own or note.reached) <= note.lost else OTHER
