"""`deploykit demo`: the whole way, on photos that come with scikit-image."""
