"""Runs that version 0.1.0 (commit 20ec5df) wrote, and the rows that every later version reads."""
