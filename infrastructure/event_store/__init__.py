"""The event log: its tables and functions, and all SQL on it."""
