"""MLflow: a file per run first, then delivery. The one package that imports mlflow."""
