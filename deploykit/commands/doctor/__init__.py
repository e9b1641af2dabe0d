"""`deploykit doctor`: what of this machine and installation can run a model."""
