"""Trials: their stages as a graph, what each has left to compute, and the results they leave behind."""
