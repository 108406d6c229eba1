"""What a recurrence that was found is called: after the module that is called once a step, or that owns its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from gradscope.capture.calls.graph import Graph
from gradscope.capture.calls.recurrences.recurrence import Recurrence
from gradscope.capture.layers.discovery import Names

MODEL = "model"


def anchors_of(graph: Graph, found: Recurrence, names: Names) -> list[str]:
    """Return the paths of the parameters that mark the steps of a recurrence, the largest first."""
    leaves: dict[int, None] = {}
    for anchor in found.anchors:
        if anchor < graph.first_inner:
            leaves[anchor] = None
        else:
            leaves.update(dict.fromkeys(_leaves_below(graph, anchor)))
    known = [leaf for leaf in leaves if id(graph.leaves[leaf]) in names.parameters]
    known.sort(key=lambda leaf: -graph.leaves[leaf].numel())
    return [names.parameters[id(graph.leaves[leaf])] for leaf in known]


def _leaves_below(graph: Graph, index: int, limit: int = 512) -> list[int]:
    todo, seen, leaves = [index], {index}, []
    while todo and len(seen) < limit:
        at = todo.pop(0)
        for child, _ in graph.inputs[at]:
            if child < 0 or child in seen:
                continue
            seen.add(child)
            if child < graph.first_inner:
                leaves.append(child)
            elif not graph.is_call(child):
                todo.append(child)
    return leaves


def name_all(
    anchors: Sequence[Sequence[str]], steps: Sequence[int], called: Mapping[str, int], taken: Iterable[str]
) -> list[str]:
    """Return a name for each recurrence; those of one weight share it.

    Parameters
    ----------
    anchors : sequence of sequence of str
        Parameter paths of each recurrence.
    steps : sequence of int
    called : mapping of str to int
        How often modules of the user's own were called.
    taken : iterable of str
        Names of sites that exist already.
    """
    keys = [tuple(sorted(paths)) for paths in anchors]
    total: Counter[tuple[str, ...]] = Counter()
    for key, count in zip(keys, steps, strict=True):
        total[key] += count
    options = {key: list(_options(paths, total[key], called)) for key, paths in zip(keys, anchors, strict=True)}
    chosen: dict[tuple[str, ...], str] = {}
    used = set(taken)
    for depth in range(max((len(o) for o in options.values()), default=0)):
        wanted = {key: o[min(depth, len(o) - 1)] for key, o in options.items() if key not in chosen}
        counts = Counter(wanted.values())
        for key, name in wanted.items():
            alone = counts[name] == 1 and name not in used and not _holds_others(name, key, keys)
            if alone or depth >= len(options[key]) - 1:
                chosen[key] = name
        used |= set(chosen.values())
    return [chosen[key] for key in keys]


def _options(paths: Sequence[str], steps: int, called: Mapping[str, int]) -> Iterable[str]:
    """Yield names from the best to the last resort."""
    if not paths:
        yield "recurrence"
        return
    for module in sorted(called, key=lambda path: (path.count(".") + (path != MODEL), path)):
        if called[module] == steps and all(_inside(path, module) for path in paths):
            yield module
    for module in sorted(called, key=lambda path: (path.count("."), path)):
        if called[module] == steps and module != MODEL and _inside(paths[0], module):
            yield module
    yield _shared([owner_of(path).split(".") for path in paths]) or owner_of(paths[0])
    yield owner_of(paths[0])
    yield paths[0]


def _inside(path: str, module: str) -> bool:
    return module == MODEL or path.startswith(f"{module}.")


def owner_of(path: str) -> str:
    """Return the path of the module that owns a parameter."""
    return path.rpartition(".")[0] or MODEL


def _shared(paths: Sequence[Sequence[str]]) -> str:
    """Return the path of the innermost module that holds all of several."""
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _holds_others(name: str, key: tuple[str, ...], keys: Sequence[tuple[str, ...]]) -> bool:
    """Whether another recurrence lies inside the module of that name as well."""
    return any(other != key and any(_inside(path, name) for path in other) for other in keys)
