"""Names inside a run directory. Both sides use these, so that a run can be started by hand."""

from __future__ import annotations

SPEC = "spec.json"
JOURNAL = "journal.jsonl"
LEASE = "lease"  # see protocol.lease; a worker whose lease is not renewed ends itself
WORKER = "worker.json"  # supervisor.processes.Identity: written by the launcher, so that a new supervisor can adopt
LOG = "worker.log"
DATA_DIR = "data"
TRAIN_TOKENS = "data/train.tokens"
VALIDATION_TOKENS = "data/validation.tokens"
CHECKPOINTS_DIR = "checkpoints"
OUTPUT_DIR = "output"
