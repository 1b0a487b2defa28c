"""Alarms, and the loops that act when one is due."""
