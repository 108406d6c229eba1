"""After ``torch.set_default_device`` a tensor that says nothing of a device is made there, not on the host."""

from __future__ import annotations

import ast
from pathlib import Path

import gradscope

# torch's functions that make a tensor of no other.
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
}


def _without_a_device(source: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in FACTORIES) == ("torch", True)
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]


def test_every_tensor_that_is_made_says_where() -> None:
    home = Path(gradscope.__file__).parent
    # What the lab trains are models of its own, which are to follow that function as a user's do.
    files = [path for path in home.rglob("*.py") if "lab" not in path.relative_to(home).parts]
    assert len(files) > 200
    assert {
        str(path.relative_to(home)): lines for path in files if (lines := _without_a_device(path.read_text()))
    } == {}


def test_a_tensor_that_does_not_is_found() -> None:
    assert _without_a_device("a = 1\nb = torch.zeros(2, dtype=torch.int64)\nc = torch.eye(2, device='cpu')") == [2]
