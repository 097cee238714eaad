"""Named faults, each put into a copy of the code, each to be noticed by a test: proof that the tests can fail."""
