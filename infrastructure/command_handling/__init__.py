"""Commands become events: load, decide, append."""
