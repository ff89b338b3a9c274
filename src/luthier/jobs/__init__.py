"""Fine-tuning jobs: their states, hyper-parameters, queue, events and metrics."""
