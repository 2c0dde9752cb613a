"""Metrics of answers and exits: exact bounds, selective risk, calibration, bootstrap."""
