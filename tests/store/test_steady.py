import io

import numpy as np
import pytest

from gradscope.store.steady import Steady


class Full(io.BytesIO):
    """A disk that takes so many bytes, the last write in part."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def write(self, data):
        left = self.room - self.tell()
        if left <= 0:
            raise OSError(28, "No space left on device")
        return super().write(bytes(data)[:left])


@pytest.mark.parametrize("room", [0, 700, 1 << 20])
def test_what_was_written_is_read_back_whatever_the_disk_took(room):
    random = np.random.default_rng(room)
    steady, expected = Steady(Full(room)), io.BytesIO()
    for _ in range(200):
        at, size = random.integers(0, 1000), random.integers(1, 300)
        data = random.bytes(size)
        for file in (steady, expected):
            file.seek(at)
            assert file.write(data) == size
            assert file.tell() == at + size
        at, size = random.integers(0, 1400), random.integers(1, 300)
        read = []
        for file in (steady, expected):
            file.seek(at)
            found = bytearray(size)
            read.append(bytes(found[: file.readinto(found)]))
        assert read[0] == read[1]
    assert steady.seek(0, 2) == expected.seek(0, 2)
    if room == 1 << 20:
        steady.check()
    else:
        with pytest.raises(OSError, match="No space"):
            steady.check()
