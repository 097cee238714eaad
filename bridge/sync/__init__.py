"""Export, follow and verify runs. Know run directories and the contract of exporters, but no target by name."""
