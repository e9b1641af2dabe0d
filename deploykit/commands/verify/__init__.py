"""`deploykit verify`: whether a bundle still decides as its reference does."""
