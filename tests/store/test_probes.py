"""A saved probe comes back as it was, without torch, and nothing in a file can run or fill the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import RunDamagedError, RunNotFoundError, SettingError
from gradscope.store import probes
from gradscope.store.probes import load_probe, save_probe


def measured() -> dict[str, Any]:
    module, x = nn.LSTM(2, 3), torch.randn(6, 2, 2)
    return {
        "Spectrum": gradscope.spectrum(module, x),
        "SourceTarget": gradscope.source_target(module, lambda: module(x)[0].pow(2).sum(2)),
        "ClipWhatIf": gradscope.clip_whatif(module, lambda: module(x)[0][-1].sum(), [np.inf, 1e-3]),
    }


@pytest.mark.parametrize("kind", ["Spectrum", "SourceTarget", "ClipWhatIf"])
def test_everything_comes_back_as_it_was(tmp_path, kind):
    one = measured()[kind]
    one.save(tmp_path / "one.npz", name="LSTM", step=3)
    back = load_probe(tmp_path / "one.npz")
    assert (back.kind, back.info, back.labels) == (kind, one.info, {"name": "LSTM", "step": 3})
    for field in fields(one):
        value, found = getattr(one, field.name), getattr(back, field.name)
        if isinstance(value, dict):
            assert value.keys() == found.keys()
            for name in value:
                np.testing.assert_array_equal(found[name], value[name])
        else:
            np.testing.assert_array_equal(found, value)


def test_it_is_read_without_torch(tmp_path):
    measured()["Spectrum"].save(tmp_path / "one.npz")
    code = f"import sys; from gradscope.store.probes import load_probe; load_probe({str(tmp_path / 'one.npz')!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_a_pickle_inside_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    header = json.dumps({"schema": probes.SCHEMA, "kind": "Spectrum", "info": {}, "plain": {}, "labels": {}})
    with path.open("wb") as file:
        np.savez(file, header=np.array(header), values=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RunDamagedError, match="not a probe"):
        load_probe(path)


def test_a_file_that_would_fill_the_memory_is_not_opened(tmp_path, monkeypatch):
    measured()["Spectrum"].save(tmp_path / "one.npz")
    monkeypatch.setattr(probes, "MAX_BYTES", 1000)
    with pytest.raises(RunDamagedError, match="not opened"):
        load_probe(tmp_path / "one.npz")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04half"])
def test_what_is_no_probe_says_so(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(RunDamagedError, match=r"x\.npz"):
        load_probe(path)
    with pytest.raises(RunNotFoundError):
        load_probe(tmp_path / "none.npz")
    with pytest.raises(SettingError, match=r"\.npz"):
        save_probe(measured()["Spectrum"], tmp_path / "one.txt")
