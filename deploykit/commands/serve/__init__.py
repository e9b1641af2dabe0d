"""``deploykit serve``: a bundle behind HTTP."""
