"""Commands as a shell would run them."""

from __future__ import annotations

import inspect
from typing import Any

from click import testing


class CliRunner(testing.CliRunner):
    """click's, with standard error by itself: since 8.2 it is so unasked."""

    def __init__(self, **options: Any) -> None:
        known = inspect.signature(testing.CliRunner).parameters
        super().__init__(**options, **({"mix_stderr": False} if "mix_stderr" in known else {}))
