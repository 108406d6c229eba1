from __future__ import annotations

import math

import pandas as pd
import pytest

from gradscope import plots
from gradscope.errors import RunExistsError, SettingError
from gradscope.lab.claims import OUTCOMES
from gradscope.lab.lecture import trainings
from gradscope.lab.lecture.chapters import tell
from gradscope.lab.lecture.textbook import TEXTBOOK
from gradscope.lab.lecture.trainings import RECORDED, SEEDS, experiments, run_lecture
from gradscope.lab.zoo.models import MODELS


@pytest.fixture(scope="module")
def told(held):
    return tell(*held)


def test_no_two_experiments_share_a_name_and_each_member_is_trained_with_every_seed():
    listed = experiments(3)
    assert len({one.name for one in listed}) == len(listed)
    for task in ("sunspots", "digits"):
        for model in set(MODELS) - {"gru-chrono", "gru-update1"}:
            seeds = [
                one.settings.seed
                for one in listed
                if (one.task, one.model, one.settings.optimizer) == (task, model, "adam") and one.trained
            ]
            assert seeds == list(range(3, 3 + SEEDS)), model
    assert sorted(one.model for one in listed if one.recorded) == sorted(RECORDED)


def test_every_question_asks_for_something():
    asked = [question for chapter in TEXTBOOK.values() for statement in chapter for question in statement.asked]
    for question in asked:
        assert question.low < question.high
        assert "{}" in question.reads
        assert not question.margin or math.isinf(question.low) != math.isinf(question.high)
        assert not math.isinf(question.low) or not math.isinf(question.high)
        assert question.where
        assert question.what
    for statements in TEXTBOOK.values():
        for statement in statements:
            assert len({question.where for question in statement.asked}) == len(statement.asked)
            assert len({len(question.at) for question in statement.asked}) == 1
            assert all(question.where == " ".join(filter(None, question.at)) for question in statement.asked)


def test_every_statement_is_answered_by_every_seed_and_shown_with_a_figure(told):
    assert len(told.claims) == sum(map(len, TEXTBOOK.values()))
    for claim in told.claims:
        assert claim.outcome in OUTCOMES
        assert all(len(answer.values) == 2 for answer in claim.answers), claim.statement
    for chapter in told.chapters[1:]:
        drawn = [shown.data["statement"] for shown in chapter.pictures if shown.plot == "evidence"]
        assert set().union(*drawn) == {claim.statement for claim in chapter.claims}


def test_the_first_figure_stands_before_the_chapters(told):
    (cover,) = told.cover
    assert set(cover.data["run"]) >= {"rnn", "lstm", "lstm-forget1", "lstm-chrono", "gru"}
    assert set(cover.data["lag"]) == set(range(10))


def test_parameters_are_counted_not_believed(told):
    (claim,) = [c for c in told.claims if c.statement.startswith("A GRU has three quarters")]
    assert claim.answers[0].values == (0.75, 0.75)
    assert claim.outcome == "confirmed"


def test_every_member_of_the_zoo_has_its_parameters_and_its_curve(told):
    members = set(MODELS) - {"gru-chrono", "gru-update1"}
    for _, table in told.chapters[0].tables:
        assert set(table["network"]) == members
    for _, table in told.chapters[0].tables[::2]:
        assert (table["parameters"].str.replace(",", "").astype(int) > 0).all()
    for when in ("start", "end"):
        drawn = pd.concat([p.data for p in told.chapters[0].pictures if p.name.endswith(when)])
        assert set(drawn["run"]) == members


def test_the_lstm_is_shown_gate_by_gate(told):
    (chapter,) = [c for c in told.chapters if "gate by gate" in c.title]
    by_name = {picture.name: picture.data for picture in chapter.pictures}
    assert list(dict.fromkeys(by_name["gate_adjoints"]["gate"])) == ["i", "f", "g", "o"]
    assert (by_name["retention"]["gate"] == "f").all()


def test_figures_have_names_of_their_own_and_plots_that_exist(told):
    pictures = [picture for chapter in told.chapters for picture in chapter.pictures]
    assert len({picture.name for picture in pictures}) == len(pictures)
    for picture in pictures:
        assert len(picture.data), picture.name
        assert plots.load(picture.plot).draw
        assert picture.caption.endswith((".", "%"))


def test_vanishing_is_never_called_an_inability_to_learn(told):
    words = " ".join([*told.opening, *(t for c in told.chapters for t in c.text), *(c.sentence for c in told.claims)])
    for phrase in ("cannot learn", "can't learn", "unable to learn", "never learn"):
        assert phrase not in words.lower()


def test_nothing_is_overwritten_and_jobs_must_be_a_number_of_jobs(tmp_path):
    with pytest.raises(RunExistsError, match="exists already"):
        run_lecture(tmp_path, quick=True)
    with pytest.raises(SettingError, match="jobs 0"):
        run_lecture(tmp_path / "out", quick=True, jobs=0)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_lecture_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainings, "run_experiment", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_lecture(tmp_path / "out", quick=True, progress=False)
    assert not any(tmp_path.iterdir())
