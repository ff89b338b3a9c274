from __future__ import annotations

import threading

from luthier.accounts import service
from luthier.errors import Conflict


def test_bootstrap_when_two_servers_start_at_once_makes_one_admin_key(database, clock):
    secrets = []
    together = threading.Barrier(4)

    def start() -> None:
        together.wait(timeout=10)
        with database.transaction() as tx:
            secrets.append(service.bootstrap(tx, master_key=b"m" * 32, now=clock.now()))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 4
    assert sum(secret is not None for secret in secrets) == 1


def test_database_when_two_servers_start_at_once_with_keys_of_their_own_is_bound_to_one(database, clock):
    accepted, refused = [], []
    together = threading.Barrier(4)

    def start(master_key: bytes) -> None:
        together.wait(timeout=10)
        try:
            with database.transaction() as tx:
                service.require_master_key(tx, master_key, now=clock.now())
        except Conflict as error:
            refused.append(error.code)
        else:
            accepted.append(master_key)

    threads = [threading.Thread(target=start, args=(bytes([number]) * 32,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["master_key_mismatch"] * 3
    with database.transaction() as tx:
        service.require_master_key(tx, accepted[0], now=clock.now())  # as at every later start
