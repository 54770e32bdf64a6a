"""The contract of attacks: a plan made once from the labels, and a pure function that stamps the trigger.

An attack file fills `stamp` (and, where it needs to, `stamp_test`, `choose` or `relabel`); counts, selection,
quantisation, flags and checks are done here once.
"""
