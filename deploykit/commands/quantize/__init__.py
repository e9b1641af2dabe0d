"""`deploykit quantize`: the graphs of lower precision."""
