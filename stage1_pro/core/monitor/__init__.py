"""The promise monitor: does FNR on exits still hold in production, and what may be said of it at any time."""
