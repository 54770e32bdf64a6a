"""Data sets: `_base.py` and one file per data set."""
