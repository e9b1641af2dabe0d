"""`deploykit doctor`: which runtimes work on this machine, and what mends the others."""
