"""Replay run directories into MLflow and TensorBoard, exactly, as often as wanted."""
