"""Exporters: `contract` says what each must do, and finds them by name."""
