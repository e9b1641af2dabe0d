"""What every HTML page shares: the document, thumbnails, numbers and units in words."""
