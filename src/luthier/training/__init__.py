"""The worker: trains one job in one run directory. torch and transformers live here, and nowhere else."""
