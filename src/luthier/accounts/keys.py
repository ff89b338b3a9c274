"""API keys as text: made, recognised and hashed. Pure."""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "lk-"
SECRET_BYTES = 32  # 256 bits: nothing to guess, so a fast keyed hash is enough
HINT_LENGTH = len(PREFIX) + 4  # tells keys apart in a list, says nothing of the other 232 bits


def make_secret() -> str:
    """Return a new API key."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def make_hint(secret: str) -> str:
    """Return the first characters of a key, to recognise it by."""
    return f"{secret[:HINT_LENGTH]}…"


def make_fingerprint(master_key: bytes) -> str:
    """Return what a master key is recognised by; it says nothing of the key."""
    return hmac.digest(master_key, b"fingerprint", hashlib.sha256).hex()


def hash_secret(secret: str, master_key: bytes) -> bytes:
    """Return what is kept of a key: a copy of the database alone can neither use nor check one."""
    return hmac.digest(master_key, b"api-key\0" + secret.encode(), hashlib.sha256)
