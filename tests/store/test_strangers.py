"""A few of the files from strangers that `scripts/torture` tries all of."""

import pytest

from tests.torture import crafted, mutations, names
from tests.torture.limited import Children
from tests.torture.strange import Bases


@pytest.mark.parametrize(
    ("part", "count"), [(crafted, 24), (mutations, 50), (names, 4)], ids=["crafted", "mutations", "names"]
)
def test_a_file_from_a_stranger_does_no_harm(tmp_path, part, count):
    outcome = part.run(tmp_path, count)
    assert outcome.fell_short == []
    assert outcome.tries >= count


#: What once did harm, by chance beyond those that are tried above.
HARMFUL = {
    "arrays: thresholds that are none",
    "arrays: negative clips",
    "arrays: two scalars of one name",
    "arrays: norms of zeros that may be read",
    "journals: no sequences, many lags",
    "journals: a log instead",
}


def test_what_once_did_harm_does_none_with_any_command(tmp_path):
    cases = [case for case in crafted.cases() if case.name in HARMFUL]
    assert len(cases) == len(HARMFUL)
    with Children() as children:
        bases = Bases(tmp_path / "bases")
        for case in cases:
            assert list(crafted.attempt(case, children, bases, tmp_path, crafted.COMMANDS)) == [], case.name


def test_there_are_as_many_as_promised():
    assert len(crafted.cases()) >= 500
    assert mutations.TRIES >= 4000
    assert len(names.NAMES) >= 90
