"""`deploykit package`: a bundle as a Triton repository, one file, or what a container serves."""
