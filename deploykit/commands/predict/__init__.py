"""`deploykit predict`: one row for each image file."""
