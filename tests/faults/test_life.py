from __future__ import annotations


def test_job_when_nothing_goes_wrong_completes_with_every_event_once(workshop):
    job_id = workshop.make_job()
    with workshop.supervised():
        workshop.wait_for_state(job_id, "completed", "error", "user_error")
    workshop.assert_intact(job_id)
