"""A worker that trains nothing: ten steps, an adapter at the fifth, a merged model; or as the job's suffix says.

``fail``: ends at fault of the data. ``wait``: goes on until it is told to stop.
"""

from __future__ import annotations

import hashlib
import io
import signal
import sys
import tarfile
import threading
from pathlib import Path

from luthier.protocol import journal, layout, spec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STEPS = 10
CHECKPOINT_AT = 5
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"adapter"}
MERGED = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 2000}


def main(directory: Path) -> int:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    name = spec.read_spec(directory / layout.SPEC).recipe.output_name
    with journal.JournalWriter(directory / layout.JOURNAL) as writer:
        writer.write(journal.ModelLoaded(param_count=1000, trainable_param_count=100))
        writer.write(journal.TrainingStarted(total_steps=STEPS, steps_per_epoch=STEPS, train_tokens=1000))
        for step in range(1, STEPS + 1):
            writer.write(
                journal.Metric(kind="train", step=step, epoch=step / STEPS, loss=3 - step / 10, tokens=100, step_s=0.01)
            )
            if step == CHECKPOINT_AT:
                archive = pack(directory, f"{layout.CHECKPOINTS_DIR}/5.tar.zst", ADAPTER)
                writer.write(journal.CheckpointSaved(step=step, kind="adapter", archive=archive), durable=True)
            if step == CHECKPOINT_AT and "-fail-" in name:
                writer.write(journal.Failed(kind="data", message="row 7 is bad", hint="mend row 7"), durable=True)
                return 1
        while "-wait-" in name and not stopped.wait(0.1):
            pass
        if stopped.is_set():
            writer.write(journal.Finished(step=STEPS, epochs_completed=0, stopped=True), durable=True)
            return 0
        writer.write(journal.Metric(kind="eval", step=STEPS, epoch=1.0, loss=2.125))
        writer.write(journal.Exporting(step=STEPS), durable=True)
        archive = pack(directory, f"{layout.OUTPUT_DIR}/merged.tar.zst", MERGED)
        writer.write(
            journal.Exported(kind="merged", step=STEPS, archive=archive, weights_sha256="0" * 64), durable=True
        )
        writer.write(journal.Finished(step=STEPS, epochs_completed=1), durable=True)
    return 0


def pack(directory: Path, name: str, files: dict[str, bytes]) -> journal.FileEntry:
    """Write an archive of files and return what the journal says of it."""
    path, data = directory / name, io.BytesIO()
    with zstd.open(data, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.getvalue())
    return journal.FileEntry(
        path=name, size_bytes=len(data.getvalue()), sha256=hashlib.sha256(data.getvalue()).hexdigest()
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
