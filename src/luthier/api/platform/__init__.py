"""Our own dialect, below ``/api``: keys, base models, jobs in full, exact money, live streams."""
