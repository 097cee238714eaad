"""Reading run directories: discover a tree, read one run, its metrics, media and params."""
