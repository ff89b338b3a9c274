"""Migrations of the schema, run by ``luthier.db.schema``."""
