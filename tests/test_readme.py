"""What README shows runs, block after block, as a reader would go through it (the trainers': tests/integrations)."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from gradscope.cli import main
from tests.readme import BLOCKS, CHINESE, README, blocks, statements

ROOT = Path(__file__).parents[1]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.fixture
def names() -> dict:
    """What a reader has before the first block."""
    torch.manual_seed(0)
    model = Classifier()
    loader = [(torch.randn(4, 100, 3), torch.tensor([0, 1, 0, 1])) for _ in range(12)]
    norms = np.exp(-0.2 * np.arange(12.0)) * np.random.default_rng(0).lognormal(0, 0.1, (8, 1))
    return {
        "torch": torch,
        "model": model,
        "loader": loader,
        "x": loader[0][0],
        "y": loader[0][1],
        "criterion": nn.CrossEntropyLoss(),
        "opt": torch.optim.SGD(model.parameters(), lr=0.1),
        "i2h": nn.Linear(3, 5),
        "h2h": nn.Linear(5, 5),
        "h": torch.zeros(5),
        "lags": np.arange(12),
        "norms": norms,
    }


def test_every_block_is_code_of_a_language_that_a_test_here_runs():
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert re.findall("^```", README, re.MULTILINE) == ["```"] * 2 * len(BLOCKS)


def test_the_python_of_readme_runs_from_top_to_bottom(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks("python", "gradscope.integrations", without=True):
        exec(compile(code, "README.md", "exec"), names)
    assert names["snapshot"]["lstm/l0"].cell.shape == (100, 4, 5)
    assert names["run"].sites == ("lstm/l0",)
    assert names["fit"].rate < 0
    assert "chrono" in str(names["found"])


def test_the_commands_of_readme_run_on_what_its_python_left(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), names)
    (command,) = [line for code in blocks("bash") for line in code.splitlines() if line.startswith("gradscope ")]
    for line in (command, *re.findall(r"`(gradscope plot story runs/\* -o [^`]*)`", README)):
        words = shlex.split(line, comments=True)[1:]
        expanded = [str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])]
        assert CliRunner().invoke(main, expanded, catch_exceptions=False).exit_code == 0, line
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "story.pdf").read_bytes().startswith(b"%PDF")


def test_the_chinese_readme_begins_with_the_same_commands_and_shows_the_same_lines():
    assert statements(CHINESE[0][1]) == statements(BLOCKS[0][1])
    shown = {line for _, code in BLOCKS for line in statements(code)}
    assert [line for _, code in CHINESE for line in statements(code) if line not in shown] == []


def test_the_chinese_readme_names_the_same_commands_in_the_same_order():
    tables = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "README.zh.md")]
    english, chinese = (re.findall(r"^\| (`gradscope [^|]*`) \|", table, re.MULTILINE) for table in tables)
    assert len(english) > 8
    assert [row.replace("、", ", ") for row in chinese] == english


def test_the_python_of_the_chinese_readme_runs_from_top_to_bottom(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, code in CHINESE:
        if language == "python":
            exec(compile(code, "README.zh.md", "exec"), names)
    assert names["fit"].rate < 0
    assert "chrono" in str(names["found"])


def test_the_scripts_that_readme_opens_with_are_there():
    scripts = [line.split()[0] for line in blocks("bash")[0].splitlines()]
    assert scripts == ["scripts/demo", "scripts/test"]
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)
