"""Which modules of a model are recurrent, and what their sites are called."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gradscope.adjoint import CELLS
from gradscope.capture.layers.adapters import Adapter, adapter_for
from gradscope.errors import SettingError, UnknownNameError
from gradscope.schema import SiteInfo

# Wrappers that hold the user's model under a name of their own.
_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Target:
    """A module to watch.

    Attributes
    ----------
    path : str
        Module path as the user's code has it; ``model`` for the model itself.
    module : nn.Module
    kind : str
        ``fused`` (``nn.RNNBase``), ``cell`` (called once per timestep) or ``layer`` (a custom layer with an adapter).
    mode : str
        ``RNN_TANH``, ``RNN_RELU``, ``LSTM``, ``GRU``, or the class name of a custom cell or layer.
    sites : tuple of SiteInfo
        Empty for a module whose sites are known only when it runs.
    adapter : Adapter or None
    """

    path: str
    module: nn.Module
    kind: str
    mode: str
    sites: tuple[SiteInfo, ...]
    adapter: Adapter | None = None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's own model inside ``torch.compile``, DataParallel or DistributedDataParallel."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def require_module(model: object) -> nn.Module:
    """Return the model if it is one.

    Raises
    ------
    SettingError
    """
    if isinstance(model, nn.Module):
        return model
    hint = ": pass an instance, not the class" if isinstance(model, type) else ""
    raise SettingError(f"model must be a torch.nn.Module, not {type(model).__name__}{hint}")


def discover(model: nn.Module, adapters: Mapping[type[nn.Module], Adapter] | None = None) -> list[Target]:
    """Return every module of ``model`` that is known by its class, in definition order; the rest is found later."""
    model = unwrapped(require_module(model))
    targets = []
    inside: list[str] = []
    for name, module in model.named_modules():
        path = as_seen(name)
        if any(name == outer or name.startswith(f"{outer}.") or outer == "" for outer in inside):
            continue  # a part of a custom layer is not a site of its own
        target = _target(path, module, adapters or {})
        if target is not None:
            targets.append(target)
            if target.kind == "layer":
                inside.append(name)
    return targets


def as_seen(name: str) -> str:
    """Return a module or parameter path as the user's code has it, without what wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS) or "model"


def names_in(model: nn.Module) -> Names:
    """Return the paths of everything in a model."""
    own = unwrapped(model)
    parameters = {id(value): as_seen(name) for name, value in own.named_parameters()}
    return Names(parameters, {as_seen(name): module for name, module in own.named_modules()})


@dataclass(frozen=True, eq=False)
class Names:
    """Paths of the modules and parameters of a model, as the user's code has them."""

    parameters: Mapping[int, str]
    modules: Mapping[str, nn.Module]

    def called(self, calls: Mapping[int, int]) -> dict[str, int]:
        """Return how often each module of the user's own was called."""
        return {
            path: calls[id(module)]
            for path, module in self.modules.items()
            if id(module) in calls and not type(module).__module__.startswith("torch.nn.modules")
        }


def _target(path: str, module: nn.Module, adapters: Mapping[type[nn.Module], Adapter]) -> Target | None:
    if isinstance(module, nn.RNNBase):
        return Target(path, module, "fused", module.mode, _fused_sites(path, module)) if module.mode in CELLS else None
    adapter = adapters.get(type(module)) or adapter_for(module)
    name = type(module).__name__
    if adapter is not None and adapter.step is not None:
        info = SiteInfo(path, path, name, name, gates=adapter.gates, curve=adapter.curve or "hidden")
        return Target(path, module, "layer", name, (info,), adapter)
    mode = next((mode for mode, cell in CELLS.items() if cell.computes(module)), None)
    if mode is not None:
        sizes: dict[str, Any] = {size: getattr(module, size, 0) for size in ("input_size", "hidden_size")}
        info = SiteInfo(path, path, name, mode.lower(), **sizes, **_described(mode))
        return Target(path, module, "cell", mode, (info,))
    return None


def _fused_sites(path: str, module: nn.RNNBase) -> tuple[SiteInfo, ...]:
    infos = []
    for layer in range(module.num_layers):
        for reverse in (False, True)[: 1 + module.bidirectional]:
            output = module.proj_size or module.hidden_size
            infos.append(
                SiteInfo(
                    site=f"{path}/l{layer}{'_reverse' if reverse else ''}",
                    module=path,
                    module_class=type(module).__name__,
                    cell=module.mode.lower(),
                    layer=layer,
                    reverse=reverse,
                    input_size=module.input_size if layer == 0 else output * (1 + module.bidirectional),
                    hidden_size=module.hidden_size,
                    proj_size=module.proj_size,
                    **_described(module.mode),
                )
            )
    return tuple(infos)


def _described(mode: str) -> dict[str, Any]:
    return {"gates": CELLS[mode].gate_names, "curve": "cell" if CELLS[mode].has_cell else "hidden"}


def black_box(path: str, module: nn.Module) -> Target:
    """Return a target of which only the input gradient ∂L/∂x_t is recorded, the curve any sequence model has."""
    name = type(module).__name__
    return Target(
        path,
        module,
        "layer",
        name,
        (SiteInfo(path, path, name, name, curve="input"),),
        adapter_for(module) or Adapter(),
    )


def select(model: nn.Module, targets: list[Target], wanted: Sequence[str] | str | None) -> list[Target]:
    """Keep the sites named in ``wanted``: a site, a module path, or a pattern such as ``encoder.*``.

    A path of any other module of ``model`` adds that module as a black box.

    Raises
    ------
    UnknownNameError
        A name that matches nothing.
    SettingError
        There is no name at all.
    """
    if wanted is None:
        return targets
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not names:
        raise SettingError("sites is empty: nothing would be recorded; pass None for every recurrent layer")
    names_of = names_in(model)
    chosen: list[Target] = []
    for target in targets:
        sites = tuple(info for info in target.sites if any(_names(info, name) for name in names))
        if sites:
            chosen.append(replace(target, sites=sites))
    known = {target.path for target in chosen}
    parameters = set(names_of.parameters.values())
    for name in names:
        if any(_names(info, name) for target in targets for info in target.sites):
            continue
        paths = [path for path in names_of.modules if path == name or fnmatch.fnmatchcase(path, name)]
        if not paths and name not in parameters:
            raise UnknownNameError("site", name, [*_site_names(targets), *names_of.modules])
        for path in paths:
            if path not in known and not any(path.startswith(f"{outer}.") for outer in paths):
                chosen.append(black_box(path, names_of.modules[path]))
                known.add(path)
    return chosen


def matches(info: SiteInfo, names: Sequence[str]) -> bool:
    """Whether a site is asked for by its name, its module's, or a pattern."""
    return any(_names(info, name) for name in names)


def _names(info: SiteInfo, name: str) -> bool:
    return name in (info.site, info.module) or any(fnmatch.fnmatchcase(n, name) for n in (info.site, info.module))


def _site_names(targets: Iterable[Target]) -> list[str]:
    return [info.site for target in targets for info in target.sites]
