"""From a run to arrays and answers, without pictures: which records count is decided here and only here.

:func:`read` gives a run as it counts, read once. :mod:`.curves`, :mod:`.norms`, :mod:`.select`, :mod:`.answers`,
:mod:`.sweeps` and :mod:`.facts` take everything from it.
"""

from __future__ import annotations

from gradscope.reading.counted import Reading, read, read_all
from gradscope.reading.records import PARTS, Choice, part_of

__all__ = ["PARTS", "Choice", "Reading", "part_of", "read", "read_all"]
