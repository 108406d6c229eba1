"""What setup.cfg cannot say: the long description is README without what only works beside the repository's files."""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# A picture and its caption: no address is known under which an index could show it.
readme = re.sub(r"^!\[[^]]*\]\([^)]*\)\n\n\*.*?\*\n\n", "", readme, flags=re.DOTALL | re.MULTILINE)
readme = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", readme)

setup(long_description=readme, long_description_content_type="text/markdown")
