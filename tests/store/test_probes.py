"""A saved probe comes back as it was, without torch, and nothing in a file can run or fill the memory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import gradscope
from gradscope.cli import main
from gradscope.errors import RunDamagedError, RunNotFoundError, SettingError, UnsafeFileError
from gradscope.store import probes
from gradscope.store.budget import LIMITS, Limit
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
    monkeypatch.setitem(LIMITS, "bytes", Limit("bytes of arrays", 1000, 0))
    with pytest.raises(UnsafeFileError, match=r"one\.npz.*bytes of arrays.*GRADSCOPE_BUDGET"):
        load_probe(tmp_path / "one.npz")


def test_an_array_that_announces_more_than_the_file_holds_is_not_allocated(tmp_path):
    measured()["Spectrum"].save(tmp_path / "one.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(tmp_path / "one.npz", "a") as members:
        members.writestr("more.npy", header.getvalue() + b"12345678")
    with pytest.raises(RunDamagedError, match="announces more"):
        load_probe(tmp_path / "one.npz")


def test_zeros_that_compress_to_little_are_not_read(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", header=np.array("{}"), zeros=np.zeros(10**7))
    with pytest.raises(UnsafeFileError, match=r"zeros\.npz.*bytes of arrays"):
        load_probe(tmp_path / "zeros.npz")


@pytest.mark.parametrize("info", [{}, None, {"site": 5}, {"site": "a", "gates": 7}])
def test_a_probe_of_a_malformed_site_is_damaged(tmp_path, info):
    header = json.dumps({"schema": probes.SCHEMA, "kind": "Spectrum", "info": info, "plain": {}, "labels": {}})
    np.savez(tmp_path / "bad.npz", header=np.array(header))
    with pytest.raises(RunDamagedError, match="not a probe"):
        load_probe(tmp_path / "bad.npz")


def test_a_probe_that_lacks_what_its_figure_needs_is_damaged(tmp_path):
    info = measured()["Spectrum"].info.to_json()
    header = json.dumps({"schema": probes.SCHEMA, "kind": "Spectrum", "info": info, "plain": {}, "labels": {}})
    np.savez(tmp_path / "bad.npz", header=np.array(header))
    found = CliRunner().invoke(main, ["plot", "spectrum", str(tmp_path / "bad.npz"), "-o", str(tmp_path / "a.png")])
    assert found.exit_code == 1
    assert "not a whole Spectrum" in found.output


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
