"""Attacks: one file or one folder each; what several share is in `bdtune.poisoning`."""
