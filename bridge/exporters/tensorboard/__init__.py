"""Export runs to TensorBoard: event files, written straight from columns."""

from bridge.exporters.tensorboard.exporter import TensorBoardExporter

__all__ = ["TensorBoardExporter"]
