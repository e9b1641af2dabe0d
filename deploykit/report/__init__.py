"""Reports: tables, terminal, pictures."""
