"""MLflow: an outbox file first, then batches. The one package that imports mlflow."""
