"""What `make bench` does before it measures: the measurement itself takes too long for a test."""

import runpy
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench" / "job.py"


def test_bench_when_nothing_is_cached_fetches_its_base_model(tmp_path):
    fetch_model = runpy.run_path(str(BENCH))["fetch_model"]
    folder = fetch_model(tmp_path, "luthier/tiny")
    assert (folder / "model.safetensors").is_file()
    assert fetch_model(tmp_path, "luthier/tiny") == folder
