"""`deploykit package`: a bundle for Triton, a container or a browser, or as one file."""
