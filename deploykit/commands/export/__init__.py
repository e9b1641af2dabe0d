"""`deploykit export`: from a checkpoint to a bundle."""
