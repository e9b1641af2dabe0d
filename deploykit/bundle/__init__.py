"""The folder that `export` writes: its manifest, its files and their hashes, its proofs."""
