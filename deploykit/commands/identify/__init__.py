"""`deploykit identify`: which architecture a checkpoint is of."""
