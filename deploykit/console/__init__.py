"""What the commands share on the command line: options, streams, the progress bar."""
