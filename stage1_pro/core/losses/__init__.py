"""Losses of our own; cross entropy is torch's."""
