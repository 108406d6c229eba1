"""Which runs belong together: by their labels, by the threshold they were clipped at, by nothing at all."""

from __future__ import annotations

import pytest

from gradscope.reading import labelled
from tests.made_runs import make_run


def made(root, name, labels=None, **options):
    return make_run(root / name, labels=labels, **options)


def test_seeds_of_one_cell_and_initialisation_are_one_model(tmp_path):
    runs = [
        made(tmp_path, f"{init}{seed}", {"init": init, "seed": seed})
        for init in ("default", "chrono")
        for seed in (0, 1)
    ]
    found = labelled.models(labelled.labelled(runs))
    assert {name: [one.name for one in of] for name, of in found.items()} == {
        "LSTM, default": ["default0", "default1"],
        "LSTM, chrono": ["chrono0", "chrono1"],
    }


def test_the_same_weights_trained_twice_are_one_seed_of_their_initialisation(tmp_path):
    runs = [made(tmp_path, f"at{c}", {"init": "default", "seed": 0, "clip": c}, threshold=c) for c in (1.0, 5.0)]
    assert [len(of) for of in labelled.models(labelled.labelled(runs)).values()] == [1]


def test_a_label_in_which_models_differ_keeps_them_apart_and_is_named(tmp_path):
    runs = [made(tmp_path, f"h{h}", {"init": "default", "seed": 0, "hidden": h}) for h in (8, 64)]
    assert list(labelled.models(labelled.labelled(runs))) == ["LSTM, default, hidden 8", "LSTM, default, hidden 64"]


def test_an_optimizer_is_named_without_saying_that_it_is_one(tmp_path):
    runs = [
        made(tmp_path, f"{name}{seed}", {"init": "default", "seed": seed, "optimizer": name})
        for name in ("sgd", "adam")
        for seed in (0, 1)
    ]
    names = set(labelled.seeds_together(runs).values())
    assert names == {"LSTM, default, sgd", "LSTM, default, adam"}


def test_runs_without_labels_are_never_taken_for_seeds_of_each_other(tmp_path):
    runs = [made(tmp_path, name) for name in ("a", "b")]
    assert list(labelled.models(labelled.labelled(runs))) == ["a", "b"]


def test_the_largest_set_that_differs_in_its_threshold_alone_is_the_family(tmp_path):
    cells = [made(tmp_path, cell, {"init": "default", "seed": 0}, cell=cell) for cell in ("lstm", "gru")]
    clipped = [
        made(tmp_path, f"{c}-{seed}", {"init": "default", "seed": seed}, cell="rnn_tanh", threshold=c)
        for c in (0.5, None)
        for seed in (0, 1)
    ]
    found = labelled.family(labelled.labelled([*cells, *clipped]))
    assert [one.name for one in found] == ["0.5-0", "0.5-1", "None-0", "None-1"]


def test_without_two_thresholds_to_compare_every_run_is_shown(tmp_path):
    runs = [made(tmp_path, cell, {"init": "default"}, cell=cell) for cell in ("lstm", "gru")]
    assert len(labelled.family(labelled.labelled(runs))) == 2


@pytest.mark.parametrize("strange", ["no mapping", 3, ["a"], {"init": {"nested": 1}}])
def test_labels_of_a_file_from_elsewhere_that_are_none_are_ignored(tmp_path, strange):
    run = made(tmp_path, "run")
    run.settings["labels"] = strange
    assert labelled.labels_of(run) == {}
