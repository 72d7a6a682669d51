"""Broken and hostile files for every reader; see `__main__`."""
