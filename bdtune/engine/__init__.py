"""The engine: stages, keys, the store, plans and execution. Needs no ray, mlflow or torch."""
