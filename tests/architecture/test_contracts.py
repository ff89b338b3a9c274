from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from luthier.db import Base, Database, schema

ROOT = Path(__file__).parents[2]


def test_import_contracts_hold():
    result = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_contracts_when_a_domain_has_tables_then_nobody_else_may_import_them():
    """A new domain is easily left out of the contracts, which then say nothing."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    protected = {
        (module, *contract["allowed_importers"])
        for contract in contracts
        if contract["type"] == "protected"
        for module in contract["protected_modules"]
    }
    package = ROOT / "src/luthier"
    domains = [path.parent for path in package.glob("*/queries.py")]
    assert domains
    for path in (path for domain in domains for path in domain.iterdir() if path.stem.endswith(("queries", "tables"))):
        assert (f"luthier.{path.parent.name}.{path.stem}", f"luthier.{path.parent.name}") in protected


def test_tables_in_code_equal_the_migrations(tmp_path):
    """A column that stands in tables.py only would work in no deployment."""
    for path in (ROOT / "src").glob("luthier/**/tables.py"):
        importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    schema.upgrade(database)
    config = schema.make_config()
    config.attributes["metadata"] = Base.metadata
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)  # raises when a difference is found
    tables = set(sa.inspect(database.engine).get_table_names())
    assert tables == set(Base.metadata.tables) | {"alembic_version"}
    database.dispose()


def _closure(name: str, seen: set[str]) -> set[str]:
    """Names of the distributions that a plain ``pip install`` of ``name`` brings."""
    from packaging.requirements import Requirement

    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return seen
    seen.add(key)
    for text in importlib.metadata.requires(key) or []:
        requirement = Requirement(text)
        extras = requirement.extras or {""}
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            try:
                importlib.metadata.distribution(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                continue
            _closure(requirement.name, seen)
    return seen


def test_base_install_stays_under_100_mb_and_pulls_no_torch():
    names = _closure("luthier", set())
    assert not names & {"torch", "transformers", "numpy", "tokenizers"}
    size_bytes = 0
    for name in names:
        for file in importlib.metadata.files(name) or []:
            path = file.locate()
            size_bytes += path.stat().st_size if path.is_file() else 0
    assert size_bytes < 100_000_000, f"{size_bytes / 1e6:.1f} MB in {sorted(names)}"


def test_only_transaction_commits():
    offenders = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "src").rglob("*.py")
        if path.name != "session.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(
            r"\b(tx|session|connection|database)\.commit\(\)", line
        )  # an upload's intake commits bytes, not rows
    ]
    assert offenders == []


def test_no_file_speaks_of_another_place():
    """Paths of a developer's machine and package registries' hosts do not belong into the repository."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/|files\.pythonhosted|registry\.npmjs|pypi\.org/simple")
    offenders = []
    for name in tracked:
        path = ROOT / name
        if path.suffix in {".png", ".tokens"} or not path.is_file() or path == Path(__file__):
            continue
        text = path.read_text(errors="replace")
        offenders += [f"{name}: {match[0]}" for match in pattern.finditer(text)]
    assert offenders == []


@pytest.mark.training
def test_torch_tests_when_run_in_parallel_share_one_worker(request):
    """Two torch processes on two cores slow each other by far; a test runner that forgets the group says nothing."""
    assert "--dist loadgroup" in (ROOT / "Makefile").read_text()
    assert request.node.nodeid.endswith("@torch") == getattr(request.config.option, "loadgroup", False)
