"""Training: how a run starts, is fitted, goes through stages and ends with scores."""
