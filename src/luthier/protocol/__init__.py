"""The contract between supervisor and worker: ``spec.json`` in, ``journal.jsonl`` out, one run directory."""
