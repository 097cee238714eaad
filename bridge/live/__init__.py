"""The live view: what run directories say at this moment, for the user interfaces of TensorBoard and MLflow."""

from bridge.live.core import LiveRun, LiveRuns

__all__ = ["LiveRun", "LiveRuns"]
