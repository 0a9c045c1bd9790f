"""Decisions about a job: pure functions of what was observed and of the time. No I/O, no clock."""
