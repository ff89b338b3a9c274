"""Fine-tuning as a service that anyone can run."""
