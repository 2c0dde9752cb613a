"""Figures of a run, and the one page that shows them."""
