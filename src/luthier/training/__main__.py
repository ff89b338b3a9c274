"""``python -m luthier.training RUN_DIR``: one job, from ``spec.json`` to the last line of ``journal.jsonl``.

Exit status: 0 after ``finished``, 1 after ``failed``. The heavy imports wait until the lease is watched and SIGTERM
is heard, so that a worker can be stopped from its first moment on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setproctitle import setproctitle

from luthier.protocol import layout
from luthier.protocol.journal import Failed, Finished, JournalWriter
from luthier.protocol.spec import read_spec
from luthier.training import failures
from luthier.training.watch import LeaseWatch, listen_for_stop


def main(directory: Path) -> int:
    """Run the job and return the exit status. Whatever goes wrong is the journal's last line."""
    with JournalWriter(directory / layout.JOURNAL) as journal:
        ending = _run(directory, journal)
        journal.write(ending, durable=True)
    return 0 if isinstance(ending, Finished) else 1


def _run(directory: Path, journal: JournalWriter) -> Finished | Failed:
    progress = failures.Progress()
    try:
        spec = read_spec(directory / layout.SPEC)
        setproctitle(f"luthier worker {spec.job_id}")
        stop = listen_for_stop()
        LeaseWatch(directory / layout.LEASE, spec.lease_s, journal).start()
        # Threads that wait for each other sleep instead of spinning. On cores that others use too, spinning made a job
        # take 2 to 3 times as long; on free ones it gains next to nothing. Read when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from luthier.training.run import run_job  # noqa: PLC0415  torch takes seconds to import

        return run_job(directory, spec, journal, stop, progress)
    except Exception as error:  # noqa: BLE001  the edge: every failure becomes a message
        return failures.classify(error, step=progress.step)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m luthier.training RUN_DIR")
    sys.exit(main(Path(sys.argv[1])))
