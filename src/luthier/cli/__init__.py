"""The command line: over HTTP only, but for the operator's own commands (``serve`` and its kin).

Modules of commands declare options and tell a story; the work is in the modules beside them.
Whatever is slow to import (httpx, rich, msgspec) is imported where it is used, so that help is instant.
"""
