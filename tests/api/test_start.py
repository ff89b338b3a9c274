from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, time

import fastapi, sqlalchemy.orm

frameworks_s = time.process_time()
from pathlib import Path

from luthier.app import build_app
from luthier.settings import Settings

build_app(Settings(home=Path(sys.argv[1])))
own_s = time.process_time() - frameworks_s
heavy = {"torch", "numpy", "tokenizers", "transformers", "jinja2", "safetensors", "huggingface_hub", "pyarrow"}
print(frameworks_s, own_s, *sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_app_starts_fast_and_imports_nothing_heavy(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "home")], capture_output=True, text=True, check=True
    )
    frameworks_s, own_s, *heavy = done.stdout.split()
    assert heavy == []
    # Against the web framework and the ORM, about 0.4 s on an idle machine: a measure that a busy one does not change.
    assert float(own_s) < 2 * float(frameworks_s)
