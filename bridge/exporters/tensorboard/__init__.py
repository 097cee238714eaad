"""Replay runs into TensorBoard: event files, written by columns at the speed of the disk."""

from bridge.exporters.tensorboard.exporter import TensorBoardExporter

__all__ = ["TensorBoardExporter"]
