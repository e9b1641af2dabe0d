"""`deploykit train`: a checkpoint from a folder of labelled photos."""
