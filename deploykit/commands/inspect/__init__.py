"""`deploykit inspect`: what a bundle, graph, engine or checkpoint is."""
