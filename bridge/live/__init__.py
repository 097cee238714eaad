"""The live view: what run directories say at this moment, for the user interfaces of TensorBoard and MLflow."""

from bridge.live.core import ByteCache, LiveRun, LiveRuns

__all__ = ["ByteCache", "LiveRun", "LiveRuns"]
