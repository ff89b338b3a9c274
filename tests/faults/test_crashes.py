"""A supervisor that dies at any fault point, or over and over, and is started again: nothing lost, nothing double."""

from __future__ import annotations

import pytest

from luthier import faults
from supervision import Workshop

# How often each point is passed in a job's life, up to three.
POINTS = {
    "adopt.after_commit": 1,
    "claim.before": 2,
    "claim.after_commit": 1,
    "prepare.after_fetch": 1,
    "prepare.done": 1,
    "launch.before": 1,
    "launch.before_record": 1,
    "launch.after_record": 1,
    "launch.after_start": 1,
    "ingest.before_store": 3,
    "ingest.after_store": 3,
    "ingest.before_commit": 3,
    "ingest.after_commit": 3,
    "storage.before_rename": 3,
    "storage.after_rename": 3,
    "settle.before": 1,
    "settle.before_commit": 1,
    "resolve.before_commit": 1,
    "settle.after_commit": 1,
}


@pytest.mark.parametrize(("point", "nth"), [(point, n + 1) for point, count in POINTS.items() for n in range(count)])
def test_job_when_supervisor_dies_at_fault_point_completes_once(workshop, point, nth):
    die_and_go_on(workshop, point, nth)


def die_and_go_on(workshop, point, nth):
    """Run a job under a supervisor that dies there, and under the next one; it must be intact."""
    job_id = workshop.make_job()
    victim = workshop.start_supervisor(armed=f"{point}:{nth}")
    workshop.wait_for_death(victim)
    assert victim.exitcode == faults.EXIT_CODE
    workshop.start_supervisor()
    workshop.wait_for_state(job_id, "completed", "error", "user_error")
    workshop.assert_intact(job_id)


# Fewer commits may all belong to a start and to making the run directory again.
@pytest.mark.parametrize("nth", [18, 21, 24])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_job_when_each_supervisor_dies_at_its_nth_commit_completes_once(workshops, moment, nth):
    workshop = workshops(tick_s=0.1)  # so that few of the commits are looks which find nothing
    job_id = workshop.make_job()
    deaths = 0
    while workshop.get_job(job_id).state != "completed":
        victim = workshop.start_supervisor(armed=f"transaction.{moment}_commit:{nth}")
        workshop.wait_for_death(victim, or_completed=job_id)
        deaths += 1
        assert deaths < 50, "no supervisor gets further than the one before"
    assert deaths > 1
    workshop.assert_intact(job_id)


# What differs there: row locks in place of the one writer, and no file that tells of changes.
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("adopt.after_commit", 1),
        ("claim.after_commit", 1),
        ("ingest.before_commit", 2),
        ("ingest.after_commit", 2),
        ("settle.before_commit", 1),
        ("settle.after_commit", 1),
    ],
)
def test_job_on_postgresql_when_supervisor_dies_at_fault_point_completes_once(home, database, point, nth):
    workshop = Workshop(home, database_url=database.url)
    die_and_go_on(workshop, point, nth)
    workshop.close()
