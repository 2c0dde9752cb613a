"""Backbone, heads and adapters, and the one file that holds a trained model. No Lightning here."""
