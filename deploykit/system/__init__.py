"""What deploykit needs of the machine and its installation; it knows of no model."""
