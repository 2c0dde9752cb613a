"""Runs and bundles in MLflow and Weights & Biases. They keep copies: a server that is away costs no training."""
