"""One verb per script; each reads and writes files of one run."""
