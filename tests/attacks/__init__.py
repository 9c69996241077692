"""Escape attempts: functions that run inside a grading process, and what each must never achieve."""
