"""``python -m luthier.cli``."""

from luthier.cli.main import run

run()
