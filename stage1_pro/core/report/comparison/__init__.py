"""The page that puts runs side by side."""
