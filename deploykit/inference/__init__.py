"""What of a bundle can run here, and the way from image files to answers."""
