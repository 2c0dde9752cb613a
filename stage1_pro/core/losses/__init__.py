"""Losses: the class loss of every phase, SelectiveLoss, ConformalRiskLoss."""
