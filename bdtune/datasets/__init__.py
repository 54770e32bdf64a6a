"""Data sets: one file or one folder per data set."""
