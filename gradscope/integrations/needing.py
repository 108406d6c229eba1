"""What to install where the library of an integration is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing(library: str) -> Iterator[None]:
    """Say which library the imports inside are of, and how it is installed.

    Raises
    ------
    ModuleNotFoundError
        It, or something that it needs itself, is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        what = library if error.name and error.name.partition(".")[0] == library else f"{library} ({error.name})"
        raise ModuleNotFoundError(
            f"{what} is not installed: python -m pip install {library}", name=error.name
        ) from error
