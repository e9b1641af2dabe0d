"""Jobs: what the commands do. Each returns a result, tells its progress, and never prints."""
