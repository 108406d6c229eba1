"""Run somebody's script as ``python script.py`` would, with something to be done when it first imports torch.

No torch here: its first import belongs to the script, which may set the number of threads or the visible devices
before it.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradscope.errors import UsageError

_kept: list[Any] = []


class NoSuchModuleError(UsageError):
    """There is no such module to run; of its own kind, for the script may raise any other error of gradscope."""


class TorchImport:
    """A finder on ``sys.meta_path`` that calls ``then`` once torch has been imported."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find torch as the other finders do, and hand it over with a loader that calls back."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._then)  # type: ignore[assignment]
        return spec


class _Loader:
    def __init__(self, loader: Any, then: Callable[[], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        module: types.ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # Its true loader again, before anything asks for it.
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then()


def when_torch_is_imported(then: Callable[[], None]) -> None:
    """Call ``then`` right after the first import of torch, or now if that has happened."""
    if "torch" in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, TorchImport(then))


def check_script(script: str) -> Path:
    """Return the script's path.

    Raises
    ------
    UsageError
        There is no such file.
    """
    path = Path(script)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UsageError(f"the script {script!r} {what}; give the path of a Python file, or -m and a module name.")
    return path


def run_script(script: str, arguments: Sequence[str], *, module: bool, finish: Callable[[], None]) -> Any:
    """Run a script or module as ``__main__`` and return what it hands to ``sys.exit``.

    Parameters
    ----------
    script : str
        Path, or with ``module`` the name of a module, as for ``python -m``.
    arguments : sequence of str
        The script's own.
    module : bool
    finish : callable
        Called when the script is over, however it ended.

    Returns
    -------
    int, str or None
        For ``sys.exit``.

    Raises
    ------
    NoSuchModuleError
        Before anything has run.
    """
    # Registered first, so called last: after the script's own exit functions.
    interrupted: list[bool] = []
    atexit.register(_die_of_interrupt, interrupted, os.getpid())
    atexit.register(finish)  # for trainings in threads that outlive the script's last line
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd() if module else str(Path(os.path.realpath(script)).parent)
    sys.argv[:] = ["-m" if module else script, *arguments]
    try:
        main, code = _module(script) if module else _file(script)
        _kept.append(sys.modules["__main__"])
        sys.modules["__main__"] = main
        exec(code, vars(main))
        status: Any = None
    except SystemExit as leaving:
        status = leaving.code
    except NoSuchModuleError:
        atexit.unregister(_die_of_interrupt)
        atexit.unregister(finish)
        raise
    except BaseException as error:
        status = 1
        interrupted += [True] if isinstance(error, KeyboardInterrupt) else []
        _print_traceback(error)
    with contextlib.suppress(KeyboardInterrupt):
        if not _other_threads():
            finish()
    return status


def _file(script: str) -> tuple[types.ModuleType, types.CodeType]:
    path = os.path.abspath(script)
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    main = types.ModuleType("__main__")
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    vars(main).update(__loader__=loader, __annotations__={}, __builtins__=builtins, __file__=path, __cached__=None)
    return main, code


def _module(name: str) -> tuple[types.ModuleType, types.CodeType]:
    spec = None
    with contextlib.suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        with contextlib.suppress(ModuleNotFoundError):
            spec = importlib.util.find_spec(name)
    get_code = getattr(spec.loader, "get_code", None) if spec is not None else None
    code = None if get_code is None else get_code(name)
    if spec is None or code is None:
        raise NoSuchModuleError(
            f"no module named {name!r} that could be run; it is looked for in {os.getcwd()} and sys.path."
        )
    main = types.ModuleType("__main__")
    vars(main).update(
        __file__=spec.origin,
        __loader__=spec.loader,
        __cached__=spec.cached,
        __spec__=spec,
        __package__=spec.parent,
        __builtins__=builtins,
    )
    sys.argv[0] = str(spec.origin)
    return main, code


def _print_traceback(error: BaseException) -> None:
    """Say what Python would say, without the frames above the script's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.excepthook(type(error), error, trace)


def _other_threads() -> bool:
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    return any(t is not threading.main_thread() and not t.daemon for t in threading.enumerate())


def _die_of_interrupt(interrupted: list[bool], process: int) -> None:
    """End as Python ends after Ctrl-C: by the signal, so that shells and make see what happened."""
    if not interrupted or os.getpid() != process:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(process, signal.SIGINT)
