"""The questions that files ask the database."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa

from luthier.db import Session
from luthier.files.tables import File, Upload


def find_file(tx: Session, project_id: str, file_id: str) -> File | None:
    """Return a project's file that is not deleted."""
    return tx.execute(_select_file(project_id, file_id)).scalar_one_or_none()


def find_file_to_keep(tx: Session, project_id: str, file_id: str) -> File | None:
    """Return a project's file that is not deleted; until the transaction ends nobody can lock it to delete it.

    Its other columns may still be changed by others: checks go on.
    """
    statement = _select_file(project_id, file_id).with_for_update(read=True, key_share=True)
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def find_file_to_delete(tx: Session, project_id: str, file_id: str) -> File | None:
    """Return a project's file that is not deleted, locked: whoever wants to keep it waits."""
    statement = _select_file(project_id, file_id).with_for_update()
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def _select_file(project_id: str, file_id: str) -> sa.Select[File]:
    return sa.select(File).where(File.id == file_id, File.project_id == project_id, File.deleted_at.is_(None))


def find_file_for_update(tx: Session, file_id: str) -> File | None:
    """Return a file that is not deleted, locked for changes; who only keeps it does not wait for that."""
    return tx.execute(
        sa.select(File).where(File.id == file_id, File.deleted_at.is_(None)).with_for_update(key_share=True)
    ).scalar_one_or_none()


def find_same_content(tx: Session, project_id: str, sha256: str, purpose: str) -> File | None:
    """Return a project's oldest file with these bytes and this purpose."""
    return (
        tx.execute(
            sa.select(File)
            .where(
                File.sha256 == sha256,
                File.project_id == project_id,
                File.purpose == purpose,
                File.deleted_at.is_(None),
            )
            .order_by(File.created_at, File.id)
            .limit(1)
        )
        .scalars()
        .first()
    )


def list_files(tx: Session, project_id: str) -> Sequence[File]:
    """Return a project's files, oldest first."""
    return (
        tx.execute(
            sa.select(File)
            .where(File.project_id == project_id, File.deleted_at.is_(None))
            .order_by(File.created_at, File.id)
        )
        .scalars()
        .all()
    )


def find_file_to_check(tx: Session, now: datetime) -> File | None:
    """Return the oldest file that waits for its check, or whose check was claimed by one that died; locked."""
    return (
        tx.execute(
            sa.select(File)
            .where(
                File.deleted_at.is_(None),
                sa.or_(
                    File.processing_status == "QUEUED",
                    sa.and_(File.processing_status == "RUNNING", File.claimed_until <= now),
                ),
            )
            .order_by(File.created_at, File.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        .scalars()
        .first()
    )


def find_upload(tx: Session, upload_id: str) -> Upload | None:
    """Return an upload."""
    return tx.get(Upload, upload_id)


def find_upload_for_update(tx: Session, upload_id: str) -> Upload | None:
    """Return an upload, locked."""
    statement = sa.select(Upload).where(Upload.id == upload_id).with_for_update()
    return tx.execute(statement, execution_options={"populate_existing": True}).scalar_one_or_none()


def lock_uploads_of_content(tx: Session, project_id: str, sha256: str, purpose: str) -> None:
    """Hold up everybody who completes an upload of this announced content; locked in one order, so none waits for ever."""
    same = (Upload.project_id == project_id, Upload.sha256 == sha256, Upload.purpose == purpose)
    tx.execute(sa.select(Upload.id).where(*same).order_by(Upload.id).with_for_update()).all()


def delete_uploads_expired_before(tx: Session, moment: datetime) -> int:
    """Forget uploads that expired before a moment, used or not; return how many."""
    deleted = tx.execute(sa.delete(Upload).where(Upload.expires_at < moment).returning(Upload.id))
    return len(deleted.all())


def list_open_upload_ids(tx: Session, upload_ids: Collection[str]) -> set[str]:
    """Return which of the uploads may still become files."""
    return set(tx.execute(sa.select(Upload.id).where(Upload.id.in_(upload_ids), Upload.used_at.is_(None))).scalars())


def list_contents_in_use(tx: Session, sha256s: Collection[str], deleted_after: datetime) -> set[str]:
    """Return which contents some file has that is there, or was deleted only after a moment."""
    return set(
        tx.execute(
            sa.select(File.sha256).where(
                File.sha256.in_(sha256s), sa.or_(File.deleted_at.is_(None), File.deleted_at > deleted_after)
            )
        ).scalars()
    )


def list_keys_in_use(tx: Session, file_ids: Collection[str], deleted_after: datetime) -> set[str]:
    """Return the object keys of the files that are there, or were deleted only after a moment."""
    return set(
        tx.execute(
            sa.select(File.object_key).where(
                File.id.in_(file_ids), sa.or_(File.deleted_at.is_(None), File.deleted_at > deleted_after)
            )
        ).scalars()
    )
