"""`deploykit bench`: the fastest option that is proven, on this machine."""
