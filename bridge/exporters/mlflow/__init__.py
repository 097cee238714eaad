"""The MLflow exporter."""

from bridge.exporters.mlflow.exporter import MlflowExporter

__all__ = ["MlflowExporter"]
