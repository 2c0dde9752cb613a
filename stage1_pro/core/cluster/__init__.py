"""Decisions on tables of any length, and trials side by side, on a Ray cluster; with the extra `ray`."""
