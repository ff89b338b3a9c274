"""Who is asking: keys are checked, made, listed and revoked here; the first start makes the first of each."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import IntegrityError

from luthier import ids
from luthier.accounts import keys, queries
from luthier.accounts.tables import ApiKey, Installation, Organization, Project
from luthier.db import Session
from luthier.errors import Conflict, Forbidden, InvalidRequest, NotFound

KEY_NAME_MAX_LENGTH = 100
KEY_LIFE_MAX = timedelta(days=3653)  # ten years: beyond it a time is a slip, or a way to say never
TOUCH_INTERVAL = timedelta(minutes=1)  # last_used_at is for people: a write for each request would not be


@dataclass(frozen=True)
class Principal:
    """Who sent a request: the key, and the project and organization that it belongs to."""

    api_key_id: str
    api_key_name: str
    organization_id: str
    organization_name: str
    project_id: str
    project_name: str
    project_slug: str
    is_admin: bool
    last_used_at: datetime | None = None


@dataclass(frozen=True)
class KeyView:
    """An API key without its secret."""

    id: str
    project_id: str
    name: str
    hint: str
    is_admin: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class OrganizationView:
    """Who pays."""

    id: str
    name: str


@dataclass(frozen=True)
class ProjectView:
    """A project; its slug opens the names of output models."""

    id: str
    name: str
    slug: str


def authenticate(tx: Session, secret: str, *, master_key: bytes, now: datetime) -> Principal:
    """Return who a key belongs to. Raises Forbidden (``invalid_api_key``) when it is unknown, revoked or expired."""
    secret_hash = keys.hash_secret(secret, master_key)
    found = queries.find_key_by_hash(tx, secret_hash)
    if found is None or not hmac.compare_digest(found[0].secret_hash, secret_hash):
        raise _invalid_key(f"this server does not know the API key: {keys.make_hint(secret)}")
    key, project, organization = found
    if key.revoked_at is not None:
        raise _invalid_key(f"the API key was revoked at {key.revoked_at:%Y-%m-%d %H:%M:%S} UTC: {key.hint}")
    if key.expires_at is not None and key.expires_at <= now:
        raise _invalid_key(f"the API key expired at {key.expires_at:%Y-%m-%d %H:%M:%S} UTC: {key.hint}")
    return Principal(
        api_key_id=key.id,
        api_key_name=key.name,
        organization_id=organization.id,
        organization_name=organization.name,
        project_id=project.id,
        project_name=project.name,
        project_slug=project.slug,
        is_admin=bool(key.is_admin),
        last_used_at=key.last_used_at,
    )


def _invalid_key(message: str) -> Forbidden:
    return Forbidden(
        "invalid_api_key",
        message,
        hint="check that the key was copied whole and is for this server; an administrator can make a new one: luthier keys create",
    )


def is_touch_due(principal: Principal, now: datetime) -> bool:
    """Tell whether the key's last use should be written down again."""
    return principal.last_used_at is None or now - principal.last_used_at >= TOUCH_INTERVAL


def touch_key(tx: Session, key_id: str, *, now: datetime) -> None:
    """Write down that a key is in use."""
    queries.touch_key(tx, key_id, now)


def is_set_up(tx: Session) -> bool:
    """Tell whether a server was started on this database before: then there is a master key that belongs to it."""
    return queries.find_installation(tx) is not None or queries.has_organization(tx)


def require_master_key(tx: Session, master_key: bytes, *, now: datetime) -> None:
    """Bind the database to a master key, for good. Raises Conflict when it is bound to another."""
    fingerprint = keys.make_fingerprint(master_key)
    row = queries.find_installation(tx) or _bind(tx, fingerprint, now)
    if row.master_key_fingerprint != fingerprint:
        raise Conflict(
            "master_key_mismatch",
            "this home's master.key is not the one that the database was set up with: its fingerprint begins with "
            f"{fingerprint[:8]}, not {row.master_key_fingerprint[:8]}",
            hint="copy master.key from the home of the first server, or from a backup: all servers of a database share it",
        )


def _bind(tx: Session, fingerprint: str, now: datetime) -> Installation:
    row = Installation(id=1, master_key_fingerprint=fingerprint, created_at=now)
    try:
        with tx.begin_nested():
            tx.add(row)
    except IntegrityError:  # another server's first start was a moment earlier (PostgreSQL)
        found = queries.find_installation(tx)
        assert found is not None, "the installation is there and is not"
        return found
    return row


def bootstrap(tx: Session, *, master_key: bytes, now: datetime) -> str | None:
    """Make the first organization, project and admin key; return the key, once. None when that was done before."""
    if queries.has_organization(tx):
        return None
    try:
        with tx.begin_nested():  # two servers that start at once on PostgreSQL: the slug lets one of them through
            organization_id = create_organization(tx, name="Default", now=now)
            project_id = create_project(tx, organization_id=organization_id, name="Default", slug="default", now=now)
    except Conflict:
        return None
    return _create_admin_key(tx, project_id, master_key, now)


def create_operator_key(tx: Session, *, master_key: bytes, now: datetime) -> str:
    """Make another admin key for the first project, whose own was lost; return it, once.

    For who has the home directory at hand: whoever can read the master key may do everything anyway.
    """
    return _create_admin_key(tx, queries.get_first_project_id(tx), master_key, now)


def _create_admin_key(tx: Session, project_id: str, master_key: bytes, now: datetime) -> str:
    _, secret = create_key(
        tx, project_id=project_id, name="admin", is_admin=True, expires_at=None, master_key=master_key, now=now
    )
    return secret


def create_organization(tx: Session, *, name: str, now: datetime) -> str:
    """Make an organization and return its id."""
    row = Organization(id=ids.new_id("org"), name=name, created_at=now)
    tx.add(row)
    tx.flush()
    return row.id


def create_project(tx: Session, *, organization_id: str, name: str, slug: str, now: datetime) -> str:
    """Make a project and return its id. Raises Conflict when another has the slug."""
    row = Project(id=ids.new_id("proj"), organization_id=organization_id, name=name, slug=slug, created_at=now)
    tx.add(row)
    try:
        tx.flush()
    except IntegrityError:
        raise Conflict("slug_taken", f"another project has the slug: {slug}", hint="choose another slug") from None
    return row.id


def get_first_organization_id(tx: Session) -> str:
    """Return the organization that the first start made."""
    return queries.get_organization_id(tx, queries.get_first_project_id(tx))


def get_organization_id(tx: Session, project_id: str) -> str:
    """Return the organization that pays for a project."""
    return queries.get_organization_id(tx, project_id)


def list_organizations(tx: Session) -> list[OrganizationView]:
    """Return all organizations, oldest first."""
    return [OrganizationView(row.id, row.name) for row in queries.list_organizations(tx)]


def choose_organization(tx: Session, reference: str | None) -> OrganizationView:
    """Return the organization with this id or with a project of this slug; None is the only one there is.

    Raises NotFound, and InvalidRequest when None is said and there are several.
    """
    all_of_them = list_organizations(tx)
    if reference is None:
        if len(all_of_them) == 1:
            return all_of_them[0]
        raise InvalidRequest(
            "organization_needed",
            f"there are {len(all_of_them)} organizations, and none was named",
            hint="name one by its id or by a project's slug: luthier billing organizations lists them",
        )
    owner = queries.find_owner_of_slug(tx, reference)
    found = next((one for one in all_of_them if one.id in {reference, owner}), None)
    if found is None:
        raise NotFound(
            "organization_not_found",
            f"there is no organization, and no project, of this name: {reference}",
            hint="luthier billing organizations lists their ids and their projects' slugs",
        )
    return found


def list_projects(tx: Session, organization_id: str) -> list[ProjectView]:
    """Return an organization's projects, oldest first."""
    return [ProjectView(row.id, row.name, row.slug) for row in queries.list_projects(tx, organization_id)]


def get_project(tx: Session, organization_id: str, reference: str) -> ProjectView:
    """Return an organization's project by its id or slug. Raises NotFound."""
    for project in list_projects(tx, organization_id):
        if reference in {project.id, project.slug}:
            return project
    raise NotFound(
        "project_not_found",
        f"the organization has no such project: {reference}",
        hint="name it by its id or slug: luthier whoami shows the key's own",
    )


def list_organization_keys(tx: Session, organization_id: str) -> list[KeyView]:
    """Return the keys of all projects of an organization, revoked and expired ones too, oldest first."""
    return [_view(row) for row in queries.list_organization_keys(tx, organization_id)]


def get_organization_key(tx: Session, organization_id: str, key_id: str) -> KeyView:
    """Return a key of any project of an organization. Raises NotFound."""
    for key in list_organization_keys(tx, organization_id):
        if key.id == key_id:
            return key
    raise NotFound(
        "key_not_found", f"the organization has no API key: {key_id}", hint="luthier keys list shows a project's keys"
    )


def create_key(
    tx: Session,
    *,
    project_id: str,
    name: str,
    is_admin: bool,
    expires_at: datetime | None,
    master_key: bytes,
    now: datetime,
) -> tuple[KeyView, str]:
    """Make a key for a project; the secret is returned here and never again."""
    name = _require_name(name)
    expires_at = None if expires_at is None else _require_expiry(expires_at, now)
    secret = keys.make_secret()
    row = ApiKey(
        id=ids.new_id("key"),
        project_id=project_id,
        name=name,
        hint=keys.make_hint(secret),
        secret_hash=keys.hash_secret(secret, master_key),
        is_admin=int(is_admin),
        created_at=now,
        expires_at=expires_at,
    )
    tx.add(row)
    tx.flush()
    return _view(row), secret


def _require_name(name: str) -> str:
    name = name.strip()
    if not name or len(name) > KEY_NAME_MAX_LENGTH or not name.isprintable():
        raise InvalidRequest(
            "invalid_name",
            f"a key's name has 1 to {KEY_NAME_MAX_LENGTH} printable characters: {name[:KEY_NAME_MAX_LENGTH]!r}",
            hint="name it after who or what will use it, e.g. ci or anna-laptop",
            param="name",
        )
    return name


def _require_expiry(expires_at: datetime, now: datetime) -> datetime:
    """Return the time in UTC. Raises InvalidRequest unless it lies ahead, by ten years at most."""
    # A difference first: with its offset a time may lie beyond the year 9999, where UTC has no name for it.
    if timedelta(0) < expires_at - now <= KEY_LIFE_MAX:
        return expires_at.astimezone(UTC)
    raise InvalidRequest(
        "invalid_expiry",
        f"a key expires within the next ten years, or never: {expires_at.isoformat()}",
        hint="give a time with its zone, as 2030-01-31T12:00:00Z, or none for a key that does not expire",
        param="expires_at",
    )


def list_keys(tx: Session, project_id: str) -> list[KeyView]:
    """Return a project's keys, revoked and expired ones too, oldest first."""
    return [_view(row) for row in queries.list_keys(tx, project_id)]


def revoke_key(tx: Session, project_id: str, key_id: str, *, now: datetime) -> KeyView:
    """End a key for good; repeating it changes nothing.

    Raises NotFound, and Conflict for the last admin key that works: nobody could make another.
    """
    row = queries.find_key(tx, project_id, key_id)
    if row is None:
        raise NotFound(
            "key_not_found", f"there is no API key: {key_id}", hint="luthier keys list shows the project's keys"
        )
    if row.revoked_at is not None:
        return _view(row)
    if list(queries.lock_usable_admin_key_ids(tx, project_id, now)) == [key_id]:
        raise Conflict(
            "last_admin_key",
            f"this is the last admin key of the project: {row.hint}",
            hint="make another admin key first, then revoke this one",
        )
    row.revoked_at = now
    return _view(row)


def _view(row: ApiKey) -> KeyView:
    return KeyView(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        hint=row.hint,
        is_admin=bool(row.is_admin),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
