"""Parameter groups, learning-rate schedules, and sharpness-aware steps."""
