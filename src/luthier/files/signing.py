"""Upload URLs carry a token that only this service can make, bound to one upload and its expiry."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime


def sign_upload(upload_id: str, expires_at: datetime, master_key: bytes) -> str:
    """Return the token of an upload's URL."""
    message = f"upload\0{upload_id}\0{expires_at.isoformat()}".encode()
    digest = hmac.digest(master_key, message, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_upload_token(token: str, upload_id: str, expires_at: datetime, master_key: bytes) -> bool:
    """Tell whether a token is the one of this upload, in constant time."""
    return hmac.compare_digest(token.encode(), sign_upload(upload_id, expires_at, master_key).encode())
