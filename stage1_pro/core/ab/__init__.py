"""A/B tests of training: the same splits, seeds and budget for several configs."""
