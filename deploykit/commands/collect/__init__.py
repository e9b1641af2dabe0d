"""`deploykit collect`: the tables of a run in shards."""
