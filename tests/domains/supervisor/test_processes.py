from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from luthier.supervisor import environment, processes
from luthier.supervisor.processes import Exit, Process
from supervision import is_running, wait_until


def start(tmp_path, script, **options):
    return processes.start(
        ["/bin/sh", "-c", script], directory=tmp_path, env={"PATH": "/usr/bin:/bin"}, log=tmp_path / "log", **options
    )


def wait_for_exit(process) -> Exit:
    return wait_until(process.find_exit, what="the process ended")


@pytest.mark.parametrize(
    ("script", "expected"), [("exit 0", Exit(code=0)), ("exit 3", Exit(code=3)), ("kill -9 $$", Exit(signal=9))]
)
def test_process_when_ended_tells_how(tmp_path, script, expected):
    assert wait_for_exit(start(tmp_path, script)) == expected


def test_process_runs_in_its_directory_and_session_with_its_output_in_the_log(tmp_path):
    process = start(tmp_path, "pwd; echo oops >&2; ulimit -c; exec sleep 60")
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and log.read_text().count("\n") == 3, what="three lines are logged")
    assert log.read_text() == f"{tmp_path}\noops\n0\n"
    assert os.getsid(process.identity.pid) == process.identity.pid
    process.kill()
    wait_for_exit(process)


def test_process_when_its_starter_fails_before_letting_it_go_never_runs(tmp_path):
    def fail(_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        start(tmp_path, "touch ran", before_run=fail)
    assert not (tmp_path / "ran").exists()


def test_process_when_its_starter_dies_before_letting_it_go_never_runs(tmp_path):
    script = f"""
import os
from pathlib import Path
from luthier.supervisor import processes
def die(identity):
    Path("pid").write_text(str(identity.pid))
    os._exit(0)
processes.start(["/bin/sh", "-c", "touch ran"], directory=Path({str(tmp_path)!r}), env={{}}, log=Path("log"), before_run=die)
"""
    starter = processes.start(
        [sys.executable, "-c", script], directory=tmp_path, env=dict(os.environ), log=tmp_path / "log"
    )
    wait_for_exit(starter)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid), what="the gate has closed")
    assert not (tmp_path / "ran").exists()


def test_process_when_killed_takes_its_children_along(tmp_path):
    process = start(tmp_path, "sleep 60 & echo $!; wait")
    child = int(wait_until(lambda: (tmp_path / "log").read_text().strip(), what="the child's pid"))
    process.kill()
    wait_until(lambda: not is_running(child), what="the child is gone")
    assert wait_for_exit(process) == Exit(signal=signal.SIGKILL)


def test_process_when_ended_by_itself_takes_its_children_along(tmp_path):
    process = start(tmp_path, "sleep 60 & echo $!")
    wait_for_exit(process)
    child = int((tmp_path / "log").read_text())
    wait_until(lambda: not is_running(child), what="the child is gone")


def test_process_when_found_again_by_identity_is_seen_until_it_ends(tmp_path):
    process = start(tmp_path, "exec sleep 60")
    again = Process(process.identity, is_child=False)
    assert again.find_exit() is None
    again.terminate()
    wait_for_exit(process)
    assert again.find_exit() == Exit()


def test_process_when_its_pid_is_another_processes_by_now_is_dead_and_not_killed(tmp_path):
    newcomer = start(tmp_path, "exec sleep 60")
    stale = Process(replace(newcomer.identity, started_ticks=newcomer.identity.started_ticks - 1), is_child=False)
    assert stale.find_exit() == Exit()
    stale.kill()
    stale.terminate()
    assert newcomer.find_exit() is None
    newcomer.kill()
    wait_for_exit(newcomer)


def test_process_when_the_machine_was_started_anew_leaves_the_group_of_its_number_alone(tmp_path):
    stranger = start(tmp_path, "sleep 600 & echo $! > child; exit 0")
    os.waitpid(stranger.identity.pid, 0)  # its leader is gone, and the group has the number still
    child = int((tmp_path / "child").read_text())
    before = Process(replace(stranger.identity, boot_id="of yesterday"), is_child=False)
    assert before.find_exit() is not None
    assert is_running(child)
    os.kill(child, signal.SIGKILL)


def test_find_identity_when_process_is_a_zombie_is_none(tmp_path):
    process = start(tmp_path, "exit 0")
    wait_until(lambda: processes.find_identity(process.identity.pid) is None, what="it is a zombie")
    assert os.waitid(os.P_PID, process.identity.pid, os.WEXITED | os.WNOWAIT) is not None
    assert process.find_exit() == Exit(code=0)


def test_find_identity_by_ps_agrees_with_itself_and_knows_the_dead(tmp_path):
    process = start(tmp_path, "exec sleep 60")
    first = processes._find_by_ps(process.identity.pid)
    assert first is not None
    assert first == processes._find_by_ps(process.identity.pid)
    process.kill()
    wait_for_exit(process)
    assert processes._find_by_ps(process.identity.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_process_when_it_asks_for_more_memory_than_its_limit_does_not_get_it(tmp_path):
    process = processes.start(
        [sys.executable, "-c", "bytearray(2**30)"],
        directory=tmp_path,
        env={},
        log=tmp_path / "log",
        memory_bytes=512 * 1024**2,
    )
    assert wait_for_exit(process) == Exit(code=1)
    assert "MemoryError" in (tmp_path / "log").read_text()


def test_environment_of_a_worker_holds_names_from_the_list_only():
    inherited = {
        "PATH": "/bin",
        "LUTHIER_DATABASE_URL": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "https_proxy": "x",
        "TZ": "UTC",
    }
    made = environment.make(inherited, home=Path("/run"), threads=3)
    assert made["PATH"] == "/bin"
    assert made["TZ"] == "UTC"
    assert made["HOME"] == "/run"
    assert made["OMP_NUM_THREADS"] == "3"
    assert "x" not in made.values()


def test_environment_of_a_fetch_keeps_proxies_and_drops_our_own_settings():
    made = environment.make_for_fetching({"https_proxy": "p", "HF_TOKEN": "t", "LUTHIER_DATABASE_URL": "x"})
    assert made == {"https_proxy": "p", "HF_TOKEN": "t"}
