"""Base models: where the weights come from, their limits, their price band."""
