"""Diagnosing a difference: by stage (files to answers) and by layer (inside the graph)."""
