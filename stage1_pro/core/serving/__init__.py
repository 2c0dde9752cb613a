"""Decisions over HTTP: the same bytes as 60's, one request or one batch at a time. Needs the extra `serve`."""
