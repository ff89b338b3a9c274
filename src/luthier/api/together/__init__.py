"""The Together dialect, below ``/v1`` and ``/v3``: what its official clients of both generations send and read."""
