"""A journal tells by its checksums that it was changed, and one of before format 1.2 reads without them."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from gradscope import open_run
from gradscope.errors import RunDamagedError
from gradscope.store import repair, validate
from gradscope.store.journal import EARLIER_STATEMENTS
from tests.store.conftest import die, write_run


@pytest.fixture
def journal(tmp_path):
    die(write_run(tmp_path / "run", close=False))
    return tmp_path / "run/attempt-1/rank-0/journal.sqlite"


def change(journal, *statements):
    with closing(sqlite3.connect(journal)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def without_sums(journal):
    """The same as an earlier version wrote it."""
    with closing(sqlite3.connect(journal)) as old:
        rows = old.execute("SELECT id, kind, payload FROM entries").fetchall()
        info = old.execute("SELECT key, value FROM info WHERE key != 'last_id'").fetchall()
    journal.unlink()
    with closing(sqlite3.connect(journal)) as new, new:
        for statement in EARLIER_STATEMENTS:
            new.execute(statement)
        new.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        new.executemany("INSERT INTO info VALUES (?, ?)", info)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET payload = replace(payload, x'30', x'31') WHERE id = 3",
        "UPDATE entries SET id = 400 WHERE id = 9",
        "UPDATE entries SET kind = 3 WHERE id = 2",
        "DELETE FROM entries WHERE id = 9",
        "DELETE FROM entries WHERE id = 4",
        "DELETE FROM entries WHERE id < 4",
        "DELETE FROM entries",
        "UPDATE info SET value = replace(value, 'lstm', 'gru')",
        "DELETE FROM info WHERE key = 'metas'",
        "UPDATE info SET value = '5' WHERE key = 'last_id'",
    ],
)
def test_a_changed_journal_is_damaged(journal, statement):
    change(journal, statement)
    with pytest.raises(RunDamagedError, match=r"journal\.sqlite"):
        open_run(journal.parents[2])
    assert len(validate(journal.parents[2])) >= 1


def test_repair_tells_which_entries_are_gone(journal):
    change(journal, "DELETE FROM entries WHERE id < 4")
    assert any("entries 1 to 3" in lost for lost in repair(journal.parents[2]).lost)


def test_repair_keeps_the_entries_whose_checksums_agree(journal):
    change(journal, "UPDATE entries SET payload = replace(payload, x'30', x'31') WHERE id = 1")
    report = repair(journal.parents[2])
    assert report.recovered == 2
    assert open_run(journal.parents[2]).records("lstm/l0")["step"].tolist() == [1, 2]


def test_a_journal_of_an_earlier_version_reads_the_same(journal):
    whole = open_run(journal.parents[2])
    without_sums(journal)
    earlier = open_run(journal.parents[2])
    np.testing.assert_array_equal(earlier.array("lstm/l0", "cell"), whole.array("lstm/l0", "cell"))
    assert earlier.steps().equals(whole.steps())
    assert validate(journal.parents[2]) == []
    assert repair(journal.parents[2]).recovered == 3
