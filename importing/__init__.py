"""Bulk import: files of JSON lines or CSV become templates."""
