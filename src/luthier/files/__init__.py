"""Uploads, their bytes and their validation reports."""
