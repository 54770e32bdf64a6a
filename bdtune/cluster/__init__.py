"""Everything that needs Ray: the Tune trainable, the searcher, schedulers, the Ray Data pipeline."""
