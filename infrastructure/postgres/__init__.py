"""PostgreSQL: connections, the caller's transaction, the server's clock. Knows no event log."""
