"""The worker: trains one job in one run directory. torch lives here, and nowhere else."""
