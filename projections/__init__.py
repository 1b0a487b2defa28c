"""The read model: what queries answer from."""
