"""What was measured for a chapter's statements: as many figures as it takes for every word to be read."""

from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from gradscope.plots import evidence, figures, style

LONG = "Of the gates of an LSTM, the forget gate alone decides how fast the gradient decays: opening another does not."


def _claims(*questions: int) -> list[SimpleNamespace]:
    """Statements with so many questions each."""
    return [
        SimpleNamespace(
            statement=f"{LONG} {number}",
            outcome="refined",
            answers=[
                SimpleNamespace(
                    asked=SimpleNamespace(
                        where=f"with chrono initialisation after training, case {case}",
                        what="difference of the decay rates, log10 per step, same seed",
                        low=0.1, high=1.0, log=False,
                    ),
                    values=[0.1, 0.2, 0.3], mean=0.2, interval=(0.1, 0.3), met=True,
                )
                for case in range(count)
            ],
        )
        for number, count in enumerate(questions)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["screen", "icml", "icml2"])
@pytest.mark.parametrize("questions", [(6, 4, 3, 4, 4, 3), (1,), (12, 1)])
def test_no_words_of_a_chapters_evidence_lie_on_each_other(questions, name):
    data = evidence.table(_claims(*questions))
    parts = evidence.parts(data, style_name=name)
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), data)
    for part in parts:
        with style.use(name):
            figure = figures.figure_of(evidence, part, name)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            renderer = canvas.get_renderer()
            words = [text for ax in figure.axes for text in (ax.title, ax._left_title, ax.xaxis.label, *ax.texts)]
            boxes = [text.get_window_extent(renderer) for text in words if text.get_text().strip()]
        assert len(boxes) >= 2 + part["where"].nunique()
        for number, box in enumerate(boxes):
            assert not any(box.shrunk(0.98, 0.9).overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize("name", ["screen", "icml", "icml2"])
def test_questions_that_differ_in_their_middle_are_told_apart(name):
    (claim,) = _claims(3)
    for answer, share in zip(claim.answers, (0.1, 0.01, 0.001), strict=True):
        answer.asked.where = f"by clipping every timestep of every sequence and unit at {share} of what the adjoint is"
    with style.use(name):
        ax = figures.figure_of(evidence, evidence.table([claim]), name).axes[0]
        words = [text.get_text() for text in ax.texts]
    assert len(set(words)) == 3
    assert all(f"{share} of" in text for text, share in zip(words, (0.1, 0.01, 0.001), strict=True))
