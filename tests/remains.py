"""What a recording may leave behind in a process: taken before and after, and compared."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

#: Where torch is looked up at each call, and so where it might have been replaced.
_PLACES = ("torch.autograd", "torch.nn.modules", "torch.nn.utils", "torch.optim", "torch.amp", "torch.utils.checkpoint")
_OWN = ("gradscope.capture", "gradscope.store")
#: Kept for good, and few: what is known of a kernel once met, torch's tables of hooks as others see them.
_CACHED = ("_Layout", "_Beside")
#: How long a thread that has been told to end may take.
_SECONDS = 20.0


def snapshot(*roots: Path) -> dict[str, Any]:
    """Return all that is compared; ``roots`` are directories in which no new entry may stay."""
    return {
        "hooks": _hooks(),
        "patches": _functions(),
        "threads": {thread.name for thread in threading.enumerate() if thread.is_alive()},
        "descriptors": _descriptors(),
        "warning filters": list(warnings.filters),
        "signal handlers": {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)},
        "objects": _objects(),
        "directories": {str(path) for root in roots for path in root.iterdir()},
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what has come, gone or changed."""
    said = []
    for what, was in before.items():
        now = after[what]
        if now == was:
            continue
        if isinstance(was, Counter):
            said += [f"{what}: {count} x {one} too many" for one, count in sorted((now - was).items())]
        elif isinstance(was, set):
            said += [f"{what}: {one} has come" for one in sorted(now - was, key=str)]
            said += [f"{what}: {one} has gone" for one in sorted(was - now, key=str)] if what != "descriptors" else []
        elif isinstance(was, dict):
            changed = [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]
            said += [f"{what}: {key} has changed" for key in changed]
        elif isinstance(was, list):
            said += [f"{what}: {one} has come" for one in now if one not in was]
            said += [f"{what}: {one} has gone" for one in was if one not in now]
        else:
            said.append(f"{what}: {was} are now {now}")
    return said


@contextlib.contextmanager
def nothing_remains(*roots: Path) -> Iterator[None]:
    """Fail where the block leaves anything behind."""
    with frozen():
        before = snapshot(*roots)
        yield
        assert settled(before, *roots) == []


def settled(before: dict[str, Any], *roots: Path) -> list[str]:
    """Say what differs, once threads that have been told to end have had the time for it."""
    gc.collect()
    end = time.monotonic() + _SECONDS
    while found := differences(before, snapshot(*roots)):
        if time.monotonic() > end or not any(one.startswith(("threads", "descriptors", "objects")) for one in found):
            return found
        time.sleep(0.01)
    return []


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Look at objects that are made in the block only: of those before there are very many."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _hooks() -> dict[str, list[Any]]:
    found = {
        f"{place.__name__}.{name}": list(value.values())
        for place in (sys.modules["torch.nn.modules.module"], sys.modules["torch.optim.optimizer"])
        for name, value in vars(place).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
    found["saved tensors"] = [torch._C._autograd._top_saved_tensors_default_hooks(False)]
    found["modes"] = [torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()]
    return found


def _functions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name in ("torch", "torch._VF") or name.startswith(_PLACES):
            _add_functions(found, name, module)
    return found


def _add_functions(found: dict[str, Any], path: str, place: Any) -> None:
    for name, value in list(vars(place).items()):
        if isinstance(value, type) and value.__module__ == path and isinstance(place, ModuleType):
            _add_functions(found, f"{path}.{name}", value)
        elif callable(value):
            found[f"{path}.{name}"] = value
            if (code := getattr(value, "__code__", None)) is not None:
                found[f"{path}.{name} (code)"] = code


def _descriptors() -> set[str]:
    found = set()
    folder = Path("/proc/self/fd")
    for entry in os.listdir(folder) if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            found.add(f"{entry} -> {os.readlink(folder / entry)}")
    return {one for one in found if not one.endswith("/fd")}


def _objects() -> Counter[str]:
    """Live tensors, and what works beside a training."""
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        kind = type(one)  # an object's own __class__ may do anything
        if issubclass(kind, torch.Tensor) or (str(kind.__module__).startswith(_OWN) and kind.__name__ not in _CACHED):
            found[kind.__qualname__] += 1
    return found
