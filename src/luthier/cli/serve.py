"""The operator's own commands: ``serve`` (everything), ``api`` and ``supervise`` (its two halves)."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import home as home_dir
from luthier.errors import Conflict, ServiceError

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Directory of everything  [default: $LUTHIER_HOME or ~/.luthier]")
]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on  [default: 127.0.0.1]")]
PortOption = Annotated[int | None, typer.Option("--port", help="Port; 0 picks a free one  [default: 4400]")]
SlotsOption = Annotated[int | None, typer.Option("--slots", min=1, help="Jobs that run at the same time")]

SUPERVISOR_GRACE_S = 10  # chores are ended and background copies finished; killed after it, it loses nothing
PARENT_POLL_S = 0.5
RESPAWN_PAUSES_S = (0.2, 1.0, 5.0, 15.0)  # the last one repeats


def serve(
    home: HomeOption = None,
    host: HostOption = None,
    port: PortOption = None,
    slots: SlotsOption = None,
) -> None:
    """Run the whole service: API and supervisor.

    The first start makes the home directory, the database, a default project and an admin key.

    Examples:
      luthier serve
      luthier serve --home ./luthier-home --port 0
    """
    _run_api(load_settings(home, host, port, slots), with_supervisor=True)


def api(home: HomeOption = None, host: HostOption = None, port: PortOption = None) -> None:
    """Run the API alone; supervisors that share its database run the jobs.

    Examples:
      LUTHIER_DATABASE_URL=postgresql+psycopg://luthier@db/luthier luthier api --host 0.0.0.0
    """
    _run_api(load_settings(home, host, port, None), with_supervisor=False)


def supervise(
    home: HomeOption = None,
    slots: SlotsOption = None,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Run the supervisor alone: it checks files, fetches base models and runs jobs.

    Stopping it leaves running workers alive; the next supervisor of this home takes them over.

    Examples:
      luthier supervise --slots 2
    """
    from luthier import log
    from luthier.supervisor import loop

    settings = load_settings(home, None, None, slots)
    log.configure(level=settings.log_level, as_json=settings.log_json)
    os.umask(home_dir.OTHERS)
    open_database(settings).dispose()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if parent is not None:
        threading.Thread(target=_stop_with_parent, args=(parent, stop), daemon=True).start()
    loop.run(settings, stop=stop)


def load_settings(home: Path | None, host: str | None, port: int | None, slots: int | None) -> Any:
    """Read the environment, then apply the options given. Raises ServiceError naming a setting that is wrong."""
    from pydantic import ValidationError

    from luthier.settings import Settings

    given = {"home": home.expanduser().resolve() if home else None, "host": host, "port": port, "slots": slots}
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ServiceError(
            "bad_setting",
            f"setting {name} is not valid: {first['input']!r}: {first['msg']}",
            hint=f"correct LUTHIER_{name.upper()} or --{name}",
        ) from None


@dataclass(frozen=True)
class _Prepared:
    database: Any
    master_key: bytes


def _prepare(settings: Any) -> _Prepared:
    """Make home and bring the schema up to date; both are safe to repeat."""
    database = open_database(settings)
    return _Prepared(database=database, master_key=_require_master_key(settings, database))


def open_database(settings: Any) -> Any:
    """Return the database, its schema up to date. Raises ServiceError when it cannot be used."""
    from sqlalchemy.exc import SQLAlchemyError

    from luthier.db import Database, outages, schema

    home_dir.make_folders(settings)
    database = Database(settings.resolved_database_url)
    try:
        schema.upgrade(database)
    except SQLAlchemyError as error:
        raise outages.describe_at_start(database, error) from error
    return database


def _require_master_key(settings: Any, database: Any) -> bytes:
    """Return home's master key, made for a new database. Raises Conflict when it is gone, or another database's."""
    from luthier.accounts import service as accounts
    from luthier.clock import SystemClock

    with database.read() as tx:
        is_new = not accounts.is_set_up(tx)
    master_key = home_dir.prepare(settings) if is_new else home_dir.find_master_key(settings.home)
    if master_key is None:
        raise Conflict(
            "master_key_missing",
            f"{settings.home / home_dir.MASTER_KEY} is missing, and the database was set up with one",
            hint="copy it from the home of the first server, or from a backup: without it no API key can be checked",
        )
    with database.transaction() as tx:
        accounts.require_master_key(tx, master_key, now=SystemClock().now())
    return master_key


def _run_api(settings: Any, *, with_supervisor: bool) -> None:
    from luthier import log
    from luthier.api.server import Server, make_config
    from luthier.app import build_app

    log.configure(level=settings.log_level, as_json=settings.log_json)
    os.umask(home_dir.OTHERS)
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with home_dir.locked(settings.home, "serve"):
        listener = _bind(settings.host, settings.port)
        base_url = f"http://{_url_host(settings.host)}:{listener.getsockname()[1]}"
        prepared = _prepare(settings)
        access = _ensure_credentials(settings, prepared, base_url)
        app = build_app(settings, database=prepared.database)
        _announce(base_url, settings, access)
        keeper = _SupervisorKeeper(settings) if with_supervisor else None
        if keeper:
            keeper.start()
        try:
            Server(make_config(app)).run(sockets=[listener])
        finally:
            if keeper:
                keeper.stop()
            prepared.database.dispose()


def _bind(host: str, port: int) -> socket.socket:
    """Listen on host and port. Raises Conflict when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                "port_taken",
                f"port {port} on {host} is taken by another process",
                hint="choose another with --port, or --port 0 for any free one",
            ) from None
        raise Conflict(
            "cannot_listen",
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose an address of this machine with --host and a port above 1023 with --port",
        ) from None
    listener.listen(2048)
    return listener


def _url_host(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104  every address: this machine reaches itself by loopback
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True)
class _Access:
    """How the operator's CLI reaches this server: a key made just now, or the login to another server that stays."""

    new_key: str | None
    login_url: str | None


def _ensure_credentials(settings: Any, prepared: _Prepared, base_url: str) -> _Access:
    """Make sure that ``credentials.json`` holds a key that works here, unless a user logged in elsewhere with it.

    A crash between the key's row and the file leaves a key that nobody knows; the next start makes
    another, so an operator is never locked out of their own home.
    """
    from luthier.accounts import service as accounts
    from luthier.billing import opening
    from luthier.billing.policy import make_policy
    from luthier.catalog import service as catalog
    from luthier.clock import SystemClock

    now = SystemClock().now()
    stored = home_dir.find_credentials(settings.home)
    with prepared.database.transaction() as tx:
        catalog.ensure_builtins(tx, now=now)
        secret = accounts.bootstrap(tx, master_key=prepared.master_key, now=now)
        is_valid = _is_valid(tx, stored, prepared.master_key, now)
        login_url = stored.base_url if stored and stored.is_login and not is_valid else None
        if secret is None and not is_valid and not login_url:
            secret = accounts.create_operator_key(tx, master_key=prepared.master_key, now=now)
        opening.grant_opening_credit(tx, make_policy(settings), now=now)
    key = secret or (stored.api_key if stored else "")
    if not login_url:
        home_dir.write_credentials(settings.home, home_dir.Credentials(base_url=base_url, api_key=key))
    return _Access(secret, login_url)


def _is_valid(tx: Any, stored: home_dir.Credentials | None, master_key: bytes, now: Any) -> bool:
    from luthier.accounts import service as accounts

    if stored is None:
        return False
    try:
        accounts.authenticate(tx, stored.api_key, master_key=master_key, now=now)
    except ServiceError:
        return False
    return True


def _announce(base_url: str, settings: Any, access: _Access) -> None:
    """Tell on stdout where the service is; scripts read these lines, so their form is fixed."""
    lines = [f"Luthier is ready: {base_url}", f"  home      {settings.home}"]
    if access.new_key:
        kept = "" if access.login_url else "; also in credentials.json, which the CLI on this machine reads by itself"
        lines += [f"  admin key {access.new_key}", f"            (shown once{kept})"]
    if access.login_url:
        lines += [
            f"  login     credentials.json is a login to {access.login_url} and stays so; for this server:",
            f"            luthier login --base-url {base_url}, or remove the file and start again for a new key",
        ]
    lines += [
        f"  try       {_find_home_prefix(settings.home)}luthier ft create DATA.jsonl --model luthier/tiny --watch",
        f"  clients   TOGETHER_BASE_URL={base_url} TOGETHER_API_KEY=… (together 1.x: {base_url}/v1)",
        "  stop      ^C; running jobs go on for ten minutes, and a start within them takes them over",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _find_home_prefix(home: Path) -> str:
    """Return what the CLI needs before it to find this home: nothing when it looks there by itself."""
    from luthier.cli import config

    return "" if config.find_home().resolve() == home.resolve() else f"LUTHIER_HOME={shlex.quote(str(home))} "


class _SupervisorKeeper:
    """Keeps one supervisor process alive beside the API, and ends it with it."""

    def __init__(self, settings: Any) -> None:
        self._command = [
            sys.executable, "-m", "luthier.cli", "supervise",
            "--home", str(settings.home), "--slots", str(settings.slots), "--parent", str(os.getpid()),
        ]  # fmt: skip
        # The child reads the environment again, where what --host and --port replaced may be wrong.
        self._environment = {**os.environ, "LUTHIER_HOST": settings.host, "LUTHIER_PORT": str(settings.port)}
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="supervisor-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._process and self._process.poll() is None:
            self._process.terminate()
        self._thread.join(timeout=SUPERVISOR_GRACE_S)
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _keep(self) -> None:
        from luthier import log

        deaths = 0
        while not self._stopping.is_set():
            # Its own session: ^C on the terminal reaches the API alone, which then ends the supervisor in order.
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
            if self._stopping.is_set():
                self._process.terminate()
            code = self._process.wait()
            if self._stopping.is_set():
                return
            pause = RESPAWN_PAUSES_S[min(deaths, len(RESPAWN_PAUSES_S) - 1)]
            log.get_logger(__name__).error("supervisor ended; starting it again", exit_code=code, pause_s=pause)
            deaths += 1
            self._stopping.wait(pause)


def _stop_with_parent(parent: int, stop: threading.Event) -> None:
    """Set ``stop`` once the process that started us is gone (its pid is no longer our parent's)."""
    while os.getppid() == parent:
        if stop.wait(PARENT_POLL_S):
            return
    stop.set()
