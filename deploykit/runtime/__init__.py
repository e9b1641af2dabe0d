"""Runtimes: open a graph or a module as a session. One private file a backend."""
