"""Attacks: one file each; files that begin with an underscore are shared."""
