"""Images: scan a folder, decode, preprocess, batch. No torch here."""
