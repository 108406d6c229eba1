from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from gradscope.lab.demo import trainings
from gradscope.lab.demo.lines import arriving, line_of
from gradscope.lab.demo.story import ahead_words, tell_demo
from gradscope.lab.zoo.models import MODELS
from gradscope.lab.zoo.train import Evaluation, TrainResult
from gradscope.words import number
from tests.made_runs import entering_last, make_run, site_info

# log10 per step before training and after it, as measured of the real networks.
RATES = {
    "rnn": (-0.2, -0.01),
    "lstm-forget1": (-0.06, 0.0),
    "lstm-chrono": (-0.01, 0.01),
    "gru-chrono": (-0.01, 0.0),
    "rnn-sgd-clip-none": (-0.2, -0.9),
}
# Gate activations before training; one unit of the chrono networks retains to the end.
GATES = {"lstm-chrono": 0.984, "gru-chrono": 0.984}
ACCURACY = {0.05: 0.46, 0.5: 0.64, 5.0: 0.12, None: 0.11}


def lines_and_runs(root, change=()):
    lines, runs = [], {}
    rates = {**RATES, **dict(change)}
    for plan in trainings.plans():
        cell = {"rnn": "rnn_tanh", "gru": "gru"}.get(plan.model.split("-")[0], "lstm")
        seed = plan.settings.seed
        labels = {**dict(zip(("cell", "init"), MODELS[plan.model], strict=True)), "seed": seed}
        labels["optimizer"] = plan.settings.optimizer
        own = rates.get(plan.name.partition("-seed")[0], rates.get(plan.model, (-0.19, -0.03)))
        own = (own[0] - 0.002 * seed, own[1])
        runs[plan.name] = make_run(
            root / plan.name, own[:1] if plan.group == "initial" else own, cell=cell, lags=64, inputs=True, seed=seed,
            threshold=plan.settings.clip, labels=labels, extra=extra_of(cell, GATES.get(plan.model, 0.5)),
        )  # fmt: skip
        accuracy = ACCURACY[plan.settings.clip] if plan.group == "clipping" else 0.8
        result = TrainResult(
            "digits", "accuracy", 4938, plan.settings, [2.3], [Evaluation(600, 1.0, accuracy + 0.01 * (seed - 1))],
            None, 1.0, labels=labels | {"group": plan.group},
        )  # fmt: skip
        lines.append(line_of(plan.name, runs[plan.name], result))
    return lines, runs


def extra_of(cell, retained):
    direct = {"direct": entering_last(lags=64)}
    gates = site_info("x/l0", cell).gates or ("h",)
    mean = np.full((len(gates), 8), retained)
    flat = np.zeros(len(gates))
    activations = {"gate_mean": mean, "gate_log_mean": np.log(mean), "gate_low": flat, "gate_high": flat + 0.25}
    return {"gates": np.ones((6, len(gates), 64)), **activations, **direct}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    lines, runs = lines_and_runs(tmp_path_factory.mktemp("demo"))
    return lines, runs, tell_demo(lines, runs)


def test_every_network_is_seen_before_training_with_every_seed():
    seen = {}
    for plan in trainings.plans():
        seen.setdefault(plan.model, set()).add(plan.settings.seed)
    assert {model: seeds for model, seeds in seen.items() if len(seeds) < 5} == {}
    assert set(seen) == {"rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru", "gru-update1", "gru-chrono"}
    names = [plan.name for plan in trainings.plans()]
    assert len(set(names)) == len(names)


def test_one_sentence_says_what_vanishes_what_is_preserved_and_why_and_what_the_threshold_did(told):
    words = told[2].lead
    assert "vanishes in RNN, LSTM and GRU as PyTorch initialises them" in words
    assert re.search(
        r"is preserved in LSTM and GRU \(\S+ and \S+\) where chrono biases start the gate that keeps the old ", words
    )
    assert "because each step back multiplies the gradient by that gate" in words
    assert "46% of held-out digits at threshold 0.05, 64% at 0.5, 12% at 5 and 11% without clipping, " in words
    assert words.endswith("where guessing names 10%.")
    assert ". " not in words.replace("0. ", "")


def test_the_sentence_claims_nothing_preserved_that_fades(tmp_path):
    lines, runs = lines_and_runs(tmp_path, {"gru": (0.0, 0.0), "lstm-chrono": (-0.15, -0.1)})
    words = tell_demo(lines, runs).lead
    assert "vanishes" not in words
    assert "preserved" not in words


def test_the_table_of_the_first_screen_holds_every_network_and_threshold(told):
    lines, _, story = told
    rows = {row[0].text: row for row in story.table.rows}
    assert list(rows)[:2] == ["RNN", "LSTM"]
    assert list(rows)[-4:] == ["RNN, clipped at 0.05", "RNN, clipped at 0.5", "RNN, clipped at 5", "RNN, not clipped"]
    values = [arriving(line.first) for line in lines if line.model == "LSTM"]
    assert rows["LSTM"][1].sort == pytest.approx(float(np.median(values)))
    assert rows["RNN, clipped at 0.5"][3].text == "64%"
    assert rows["GRU, update bias 1"][2].text == "–"  # seen before training only
    assert story.recorded == len(lines)


def test_the_first_sentence_says_what_vanishes_and_how_fast(told):
    lines, _, story = told
    words = story.opening[0]
    assert words.startswith("Vanishing: in RNN, LSTM and GRU alike, as PyTorch initialises them.")
    rnn = [arriving(line.first) for line in lines if line.model == "RNN" and line.group != "clipping"]
    assert f"of 64 pixels, {number(float(np.median(rnn)), 1)}, " in words
    # halves every log10(2) / .2 steps, or nearly so
    assert "It halves about every 1.5 pixels." in words


def test_the_second_sentence_says_what_is_preserved_and_by_what(told):
    words = told[2].opening[1]
    assert words.startswith("Preserved, to within a factor of ")
    assert "where the gates start open" in words
    # -1 / ln .5 and -1 / ln .984
    assert "by default a unit retains for 1.4 pixels, with chrono for up to 62." in words


def test_the_third_sentence_says_what_the_threshold_did(told):
    words = told[2].opening[2]
    assert "46% at threshold 0.05, 64% at threshold 0.5, 12% at threshold 5 and 11% without clipping" in words
    assert "median of 3 seeds" in words
    assert "not how fast a step's gradient fades" in words


def test_a_default_that_did_not_vanish_is_not_said_to(tmp_path):
    lines, runs = lines_and_runs(tmp_path, {"gru": (0.0, 0.0), "lstm-chrono": (-0.15, -0.1)})
    opening = tell_demo(lines, runs).opening
    assert "alike" not in opening[0]
    assert "GRU preserved" in opening[0]
    assert opening[1].startswith("Where the gates start open")


def test_a_diverged_training_is_counted_apart(told):
    lines, runs, _ = told
    gone = "rnn-sgd-clip-none-seed-1"
    story = tell_demo(
        [replace(line, result=replace(line.result, diverged=7)) if line.name == gone else line for line in lines], runs
    )
    assert "11% (1 of 3 diverged) without clipping" in story.opening[2]
    assert "Without clipping, 1 of 3 runs diverged" in " ".join(story.chapters[2].text)


def test_the_first_figure_is_the_whole_story_over_seeds(told):
    (cover,) = told[2].cover
    initial = cover.data[cover.data["panel"] == "initial"]
    assert initial.groupby("line")["seed"].nunique().to_dict() == dict.fromkeys(initial["line"].unique(), 5)
    assert initial["line"].nunique() == 7
    through = cover.data[cover.data["panel"] == "through"]
    assert set(through["line"]) == {"c = 0.05", "c = 0.5", "c = 5", "no clip"}


def test_every_network_stands_beside_the_others_before_and_after(told):
    pictures = {picture.name: picture for chapter in told[2].chapters for picture in chapter.pictures}
    for name in ("cells_decay_start", "cells_decay_end", "cells_training"):
        assert pictures[name].data["run"].nunique() == 6
    assert set(pictures["cells_decay_start"].data["step"]) == {0}
    assert set(pictures["clipping_sweep_loss"].data["threshold"]) == {0.05, 0.5, 5.0, float("inf")}


def test_the_tables_hold_what_arrives_at_the_first_input_over_seeds(told):
    lines, _, story = told
    (_, table), *_ = story.chapters[0].tables
    shown = table.set_index("network")["arrives"]
    values = [arriving(line.first) for line in lines if line.model == "LSTM"]
    assert shown["LSTM"] == "\n".join(
        [number(float(np.median(values)), 1), f"{number(min(values), 1)} to {number(max(values), 1)}"]
    )
    (_, cells), *_ = story.chapters[1].tables
    assert float(cells.set_index("network").loc["RNN", "before"]) == pytest.approx(10 ** (-0.2 * 63), rel=0.3)


def test_saturation_is_said_from_the_recorded_share(told):
    assert "Saturated in the end: 25% at threshold 0.05, 25% at threshold 0.5" in told[2].chapters[2].text[-2]


def arrives(run, record):
    """What of ‖∂L/∂x‖ at the last input arrives at the first, from the stored norms alone; 0 below a normal number."""
    norms = run.array(run.sites[0], "input")[record]
    if (norms[:, -1] < run.records(run.sites[0])["smallest_normal"].iloc[record]).mean() > 0.5:
        return 0.0
    return float(10 ** np.mean(np.log10(norms[:, -1]) - np.log10(norms[:, 0])))


def test_every_number_of_the_sentences_is_that_of_the_stored_norms(told):
    lines, runs, story = told

    def medians(record, **of):
        found = {}
        for line in lines:
            if all(getattr(line, name) == value for name, value in of.items()):
                key = line.threshold if record else line.model
                found.setdefault(key, {}).setdefault(line.result.settings.seed, arrives(runs[line.name], record))
        return {key: number(float(np.median(list(by_seed.values()))), 1) for key, by_seed in found.items()}

    first, last = medians(0), medians(-1, group="clipping")
    default, opened = [first[name] for name in ("RNN", "LSTM", "GRU")], [first[f"{c}, chrono"] for c in ("LSTM", "GRU")]
    lead, vanishing, preserved = story.lead, *story.opening[:2]
    assert list(re.search(r"\((\S+), (\S+) and (\S+) of that at the last pixel arrive\)", lead).groups()) == default
    assert list(re.search(r"LSTM and GRU \((\S+) and (\S+)\) where", lead).groups()) == opened
    assert list(re.search(r"of 64 pixels, (\S+), (\S+) and (\S+) arrives", vanishing).groups()) == default
    found = re.search(
        r"biases (\S+) arrives in the LSTM and (\S+) in the GRU, with a bias of 1 (\S+) and (\S+)\.", preserved
    )
    assert list(found.groups()) == [*opened, first["LSTM, forget bias 1"], first["GRU, update bias 1"]]
    ends = story.chapters[2].text[-2]
    for threshold, value in last.items():
        where = "without clipping" if np.isinf(threshold) else f"at threshold {threshold:g}"
        assert f"{value} {where}" in ends


def test_a_curve_that_ends_in_zeros_reaches_nothing(told):
    assert arriving(replace(told[0][0].late, lost_from=1)) == 0.0


def test_the_table_says_why_a_network_whose_gradient_vanished_can_learn_more(told):
    lines, _, _ = told
    cells = [line for line in lines if line.group == "cells"]
    assert ahead_words(cells) == ""  # all learn the same here
    (rnn,) = [line for line in cells if line.model == "RNN"]
    better = replace(rnn.result, evaluations=[Evaluation(600, 1.0, 0.86)])
    ahead = [replace(line, result=better) if line is rnn else line for line in cells]
    words = ahead_words(ahead)
    assert words.startswith(
        " The RNN learns more digits (86%) than those that chrono biases open (79% and 79%): at step"
    )
    curves = told[1]["rnn"].norms(told[1]["rnn"].sites[0], "input").groupby(["step", "lag"])["norm"]
    means = curves.apply(lambda norm: np.exp(np.log(norm).mean())).unstack("lag")
    arrives = means[63] / means[0]
    assert rnn.opened == arrives.index[arrives >= 0.01][0]
    assert f"at step {rnn.opened} of 600 already more than 1% arrives in it as well, in the end 0." in words
