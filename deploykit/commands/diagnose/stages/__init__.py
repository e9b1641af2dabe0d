"""Which stage from file to answer moved an answer."""
