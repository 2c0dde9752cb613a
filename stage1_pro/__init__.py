"""Train, certify and ship the first stage of a classifier cascade."""

__version__ = "0.1.0"
