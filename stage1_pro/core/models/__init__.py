"""Backbone, heads, and the Lightning module that trains them."""
