"""Defenses: one file each; a chain of stages from the poisoned training set to a classifier."""
