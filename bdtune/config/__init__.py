"""YAML and command line settings, read into checked trials and sweeps."""
