"""A bundle on the labelled images of another site: certified anew for it, or measured on it."""
