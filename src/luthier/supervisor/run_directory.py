"""Run directories: made for one job, private, with everything that its worker needs and nothing else."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from luthier.log import redact
from luthier.protocol import layout, lease, spec
from luthier.protocol.spec import Full, Hyperparameters, TrainingSpec
from luthier.storage import ObjectStore

LOG_MAX_BYTES = 8 * 1024**2
LOG_KEPT_BYTES = 1024**2  # of a log that grew too long, its end
LAST_LINE_MAX_CHARS = 300


class NotEnoughSpace(Exception):
    """The disk cannot hold what the run may write; the message gives both sizes."""


@dataclass(frozen=True)
class RunDirectory:
    """One job's directory, by the names in ``protocol.layout``."""

    path: Path

    @property
    def journal(self) -> Path:
        """The worker's journal."""
        return self.path / layout.JOURNAL

    def create(self) -> None:
        """Make the directory, its folders and the lease; what is there already stays."""
        for folder in (self.path, self.path / layout.DATA_DIR):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.touch_lease()

    def write_spec(self, training_spec: TrainingSpec) -> None:
        """Write what the worker is to do."""
        spec.write_spec(self.path / layout.SPEC, training_spec)

    def fetch(self, store: ObjectStore, object_key: str, name: str) -> None:
        """Bring an object here under a name of the layout, in place of what an interrupted try left."""
        destination = self.path / name
        destination.unlink(missing_ok=True)
        store.fetch_file(object_key, destination)

    def touch_lease(self) -> None:
        """Tell the worker that its lease was renewed."""
        lease.touch(self.path / layout.LEASE)

    def grant_grace(self, grace_s: float) -> None:
        """Let the worker go on without a supervisor for a while."""
        lease.grant(self.path / layout.LEASE, grace_s)

    def get_journal_size(self) -> int:
        """Return the journal's size in bytes; 0 when there is none."""
        try:
            return self.journal.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def trim_log(self) -> None:
        """Keep the end of a log that grew beyond its limit. Lines written in that moment may be lost."""
        path = self.path / layout.LOG
        if not path.exists() or path.stat().st_size <= LOG_MAX_BYTES:
            return
        with path.open("r+b") as file:
            file.seek(-LOG_KEPT_BYTES, os.SEEK_END)
            end = file.read()
            file.seek(0)
            file.write(end)
            file.truncate()  # the worker appends, so it goes on behind the new end


def find_last_line(log: Path) -> str | None:
    """Return the last line of a log, None when there is none: of a Python program that died, what it died of."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16 * LAST_LINE_MAX_CHARS))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return None
    texts = [text for line in lines if (text := "".join(c for c in line if c.isprintable()).strip())]
    return redact(texts[-1])[:LAST_LINE_MAX_CHARS] if texts else None


def require_space(runs_dir: Path, needed_bytes: int, reserve_bytes: int) -> None:
    """Raise NotEnoughSpace unless the disk holds ``needed_bytes`` and leaves ``reserve_bytes`` free."""
    free = shutil.disk_usage(runs_dir).free
    if free < needed_bytes + reserve_bytes:
        raise NotEnoughSpace(
            f"the run may need {_to_gb(needed_bytes)} of disk and {_to_gb(reserve_bytes)} are kept in reserve, "
            f"but {_to_gb(free)} are free under {runs_dir}"
        )


def estimate_bytes(hyperparameters: Hyperparameters, model_size_bytes: int, data_size_bytes: int) -> int:
    """Return the most that a run may keep on disk at once, its objects in a store on the same disk included.

    One merged or full model as a folder and as an archive at the end; for full training every
    intermediate checkpoint is an archive of the whole model, too. Adapters are small beside that.
    """
    full_checkpoints = hyperparameters.n_checkpoints if isinstance(hyperparameters.training_type, Full) else 0
    return data_size_bytes + (2 + full_checkpoints) * model_size_bytes


def _to_gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
