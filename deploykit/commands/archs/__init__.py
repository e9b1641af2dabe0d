"""`deploykit archs`: the architectures that can be named."""
