"""Parity: does the candidate decide as the reference does? On arrays and on sessions."""
