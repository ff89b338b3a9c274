"""Which server, and with which key: the option, the environment, then ``credentials.json``.

A key is never an argument: other users of the machine can read a process's arguments. And a
stored key is sent to the server that it was stored for, never to another one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from luthier import home
from luthier.cli.exits import Exit, Failure

NEXT_STEP = "start a server on this machine with: luthier serve; or name an existing one with: luthier login"


@dataclass(frozen=True)
class Config:
    """A server and the key to use with it. ``repr`` does not show the key."""

    base_url: str
    api_key: str

    def __repr__(self) -> str:
        return f"Config(base_url={self.base_url!r})"


def find_home() -> Path:
    """Return LUTHIER_HOME, or its default; it need not exist."""
    return Path(os.environ.get("LUTHIER_HOME") or Path("~/.luthier").expanduser())


def resolve(base_url: str | None) -> Config:
    """Return what to use, from ``--base-url``, the environment and ``credentials.json``.

    Raises Failure when there is no server or no key, or when the only key belongs to another server.
    """
    named_url = base_url or os.environ.get("LUTHIER_BASE_URL")
    url = normalise_url(named_url) if named_url else None
    key = os.environ.get("LUTHIER_API_KEY")
    if url and key:
        return Config(url, key)
    stored = _find_stored()
    if stored is None:
        raise _not_configured(url)
    stored_url = normalise_url(stored.base_url)
    if key:
        return Config(stored_url, key)
    if url not in {None, stored_url}:
        raise Failure(
            "no_key_for_server",
            f"there is no API key for {url}: the stored one belongs to {stored_url}",
            exit_code=Exit.CONNECTION,
            hint=f"set LUTHIER_API_KEY, or store a key with: luthier login --base-url {url}",
        )
    return Config(stored_url, stored.api_key)


def _not_configured(url: str | None) -> Failure:
    if url:
        return Failure(
            "no_api_key",
            f"there is no API key for {url}",
            exit_code=Exit.CONNECTION,
            hint=f"set LUTHIER_API_KEY, or store a key with: luthier login --base-url {url}",
        )
    if os.environ.get("LUTHIER_API_KEY"):
        return Failure(
            "no_base_url",
            "LUTHIER_API_KEY is set, but no server is named",
            exit_code=Exit.CONNECTION,
            hint="set LUTHIER_BASE_URL, or pass --base-url, for example http://127.0.0.1:4400",
        )
    return Failure("not_configured", "no server is configured", exit_code=Exit.CONNECTION, hint=NEXT_STEP)


def _find_stored() -> home.Credentials | None:
    path = find_home() / "credentials.json"
    credentials = home.find_credentials(path.parent)
    if credentials is None and path.exists():
        raise Failure(
            "credentials_unreadable",
            f"{path} cannot be read as credentials",
            exit_code=Exit.CONNECTION,
            hint="write it anew with: luthier login",
        )
    return credentials


def normalise_url(url: str) -> str:
    """Return ``url`` without a trailing slash or ``/v1``. Raises Failure when it is not an HTTP URL."""
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise Failure(
            "bad_base_url",
            f"not the URL of a server: {url}",
            exit_code=Exit.USAGE,
            hint="write it with its scheme, for example http://127.0.0.1:4400",
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def store(config: Config) -> Path:
    """Write ``credentials.json`` (0600) and return its path."""
    folder = find_home()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.write_credentials(folder, home.Credentials(config.base_url, config.api_key, is_login=True))
    return folder / "credentials.json"
