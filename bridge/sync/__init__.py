"""What the bridge does: export, plan, follow, verify; over the source and the exporter contract only."""
