"""What decides which trials are run and which go on: Optuna's samplers and Tune's schedulers, by name."""
