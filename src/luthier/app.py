"""The map of the HTTP surface."""
