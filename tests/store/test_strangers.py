"""A few of the files from strangers that `scripts/torture` tries all of."""

import pytest

from tests.torture import crafted, mutations, names


@pytest.mark.parametrize(
    ("part", "count"), [(crafted, 24), (mutations, 50), (names, 4)], ids=["crafted", "mutations", "names"]
)
def test_a_file_from_a_stranger_does_no_harm(tmp_path, part, count):
    outcome = part.run(tmp_path, count)
    assert outcome.fell_short == []
    assert outcome.tries >= count


def test_there_are_as_many_as_promised():
    assert len(crafted.cases()) >= 500
    assert mutations.TRIES >= 4000
    assert len(names.NAMES) >= 90
