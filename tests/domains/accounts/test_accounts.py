from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from luthier.accounts import keys, service
from luthier.accounts.tables import ApiKey
from luthier.errors import Conflict, Forbidden, InvalidRequest, NotFound

MASTER_KEY = b"m" * 32


@pytest.fixture
def admin_key(database, clock) -> str:
    with database.transaction() as tx:
        return service.bootstrap(tx, master_key=MASTER_KEY, now=clock.now())


def authenticate(database, clock, secret, master_key=MASTER_KEY):
    with database.read() as tx:
        return service.authenticate(tx, secret, master_key=master_key, now=clock.now())


def create_key(database, clock, project_id, **changes):
    fields = {"name": "ci", "is_admin": False, "expires_at": None, **changes}
    with database.transaction() as tx:
        return service.create_key(tx, project_id=project_id, master_key=MASTER_KEY, now=clock.now(), **fields)


def test_bootstrap_at_first_start_makes_a_working_admin_key(database, clock, admin_key):
    principal = authenticate(database, clock, admin_key)
    assert principal.is_admin
    assert (principal.organization_name, principal.project_name, principal.project_slug) == (
        "Default",
        "Default",
        "default",
    )


def test_bootstrap_when_repeated_makes_nothing(database, clock, admin_key):
    with database.transaction() as tx:
        assert service.bootstrap(tx, master_key=MASTER_KEY, now=clock.now()) is None
    with database.read() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(ApiKey)).scalar_one() == 1


def test_operator_key_is_another_admin_key_of_the_first_project(database, clock, admin_key):
    with database.transaction() as tx:
        other = service.create_operator_key(tx, master_key=MASTER_KEY, now=clock.now())
    assert other != admin_key
    principal = authenticate(database, clock, other)
    assert principal.is_admin
    assert principal.project_id == authenticate(database, clock, admin_key).project_id


def test_key_when_made_is_unguessable_and_not_kept(database, clock, admin_key):
    assert admin_key.startswith("lk-")
    assert len(admin_key) == len("lk-") + 43
    with database.read() as tx:
        row = tx.execute(sa.select(ApiKey)).scalar_one()
    assert row.secret_hash == keys.hash_secret(admin_key, MASTER_KEY)
    stored = repr({name: value for name, value in vars(row).items() if not name.startswith("_")})
    assert admin_key not in stored
    assert admin_key[10:] not in stored


@pytest.mark.parametrize("secret", ["lk-unknown", "", "x", "lk-" + "ä" * 43, "\N{PILE OF POO}" * 20])
def test_authenticate_when_unknown_is_forbidden_and_says_so(database, clock, admin_key, secret):
    with pytest.raises(Forbidden, match="does not know") as caught:
        authenticate(database, clock, secret)
    assert caught.value.code == "invalid_api_key"


def test_authenticate_when_unknown_does_not_repeat_the_secret(database, clock, admin_key):
    secret = "tgp_v1_" + "s" * 40
    with pytest.raises(Forbidden) as caught:
        authenticate(database, clock, secret)
    assert secret not in caught.value.message
    assert "s" * 8 not in caught.value.message


def test_authenticate_with_the_database_alone_is_not_possible(database, clock, admin_key):
    with pytest.raises(Forbidden):
        authenticate(database, clock, admin_key, master_key=b"other" * 8)


def test_authenticate_when_expired_says_when(database, clock, admin_key):
    project_id = authenticate(database, clock, admin_key).project_id
    _, secret = create_key(database, clock, project_id, expires_at=clock.now() + timedelta(hours=1))
    clock.advance(3599)
    authenticate(database, clock, secret)
    clock.advance(1)
    with pytest.raises(Forbidden, match="expired at 2026-01-01 13:00:00 UTC") as caught:
        authenticate(database, clock, secret)
    assert caught.value.code == "invalid_api_key"


def test_revoke_ends_a_key_and_repeating_it_changes_nothing(database, clock, admin_key):
    project_id = authenticate(database, clock, admin_key).project_id
    key, secret = create_key(database, clock, project_id)
    with database.transaction() as tx:
        first = service.revoke_key(tx, project_id, key.id, now=clock.now())
    clock.advance(60)
    with database.transaction() as tx:
        assert service.revoke_key(tx, project_id, key.id, now=clock.now()) == first
    with pytest.raises(Forbidden, match="was revoked at 2026-01-01 12:00:00 UTC"):
        authenticate(database, clock, secret)


def test_revoke_of_the_last_working_admin_key_is_refused(database, clock, admin_key):
    admin = authenticate(database, clock, admin_key)
    create_key(database, clock, admin.project_id, is_admin=True, expires_at=clock.now() + timedelta(hours=1))
    clock.advance(3600)
    with pytest.raises(Conflict) as caught, database.transaction() as tx:
        service.revoke_key(tx, admin.project_id, admin.api_key_id, now=clock.now())
    assert caught.value.code == "last_admin_key"
    create_key(database, clock, admin.project_id, is_admin=True)
    with database.transaction() as tx:
        service.revoke_key(tx, admin.project_id, admin.api_key_id, now=clock.now())
    with pytest.raises(Forbidden):
        authenticate(database, clock, admin_key)


def test_keys_of_another_project_are_neither_listed_nor_revoked(database, clock, admin_key):
    admin = authenticate(database, clock, admin_key)
    with database.transaction() as tx:
        organization_id = service.create_organization(tx, name="Other", now=clock.now())
        other_id = service.create_project(
            tx, organization_id=organization_id, name="Other", slug="other", now=clock.now()
        )
    key, secret = create_key(database, clock, other_id)
    with database.read() as tx:
        assert [view.id for view in service.list_keys(tx, other_id)] == [key.id]
        assert [view.id for view in service.list_keys(tx, admin.project_id)] == [admin.api_key_id]
    with pytest.raises(NotFound), database.transaction() as tx:
        service.revoke_key(tx, admin.project_id, key.id, now=clock.now())
    assert authenticate(database, clock, secret).project_id == other_id


def test_create_project_when_slug_is_taken_is_a_conflict(database, clock, admin_key):
    admin = authenticate(database, clock, admin_key)
    with pytest.raises(Conflict, match="default"), database.transaction() as tx:
        service.create_project(tx, organization_id=admin.organization_id, name="Again", slug="default", now=clock.now())


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "two\nlines", "\x1b[31mred"])
def test_create_key_when_name_is_no_name_is_refused(database, clock, admin_key, name):
    project_id = authenticate(database, clock, admin_key).project_id
    with pytest.raises(InvalidRequest) as caught:
        create_key(database, clock, project_id, name=name)
    assert caught.value.param == "name"


def test_create_key_when_expiry_is_past_is_refused(database, clock, admin_key):
    project_id = authenticate(database, clock, admin_key).project_id
    with pytest.raises(InvalidRequest) as caught:
        create_key(database, clock, project_id, expires_at=clock.now())
    assert caught.value.param == "expires_at"


def test_touch_is_due_at_first_and_then_once_a_minute(database, clock, admin_key):
    principal = authenticate(database, clock, admin_key)
    assert service.is_touch_due(principal, clock.now())
    with database.transaction() as tx:
        service.touch_key(tx, principal.api_key_id, now=clock.now())
    clock.advance(59)
    assert not service.is_touch_due(authenticate(database, clock, admin_key), clock.now())
    clock.advance(1)
    assert service.is_touch_due(authenticate(database, clock, admin_key), clock.now())
