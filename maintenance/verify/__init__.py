"""Compares what is stored with what the log says."""
