"""Drawn data in real on-disk formats, for the demo, studies and tests. No patient was ever involved."""
