"""What is written down about a run: its directory, splits, scores, ledger and provenance."""
