from __future__ import annotations

import threading

from luthier.accounts import service


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
