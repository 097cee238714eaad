"""Named faults, each put into a copy of the code for a test to notice: proof that the tests can fail."""
