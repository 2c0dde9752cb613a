"""The page of a promise monitor."""
