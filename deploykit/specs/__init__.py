"""The values that the parts of deploykit hand to each other: frozen, without I/O."""
