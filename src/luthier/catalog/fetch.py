"""The work of fetching a base model, outside the database: from an order to a complete, checked folder.

``build_tiny(folder)`` writes ``luthier/tiny`` anywhere, for tests and experiments. Everything here
needs the extra ``train``, and none of it torch.
"""

from __future__ import annotations

from pathlib import Path

from luthier.catalog import tiny


def build_tiny(folder: Path) -> None:
    """Write ``luthier/tiny`` into a new folder. Raises FileExistsError when there is one."""
    folder.mkdir(parents=True)
    tiny.write_tiny(folder)
