"""What jobs produce: checkpoints, output models and their archives."""
