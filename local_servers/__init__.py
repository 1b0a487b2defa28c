"""Embedded PostgreSQL and a local RocketMQ, for development, the demo and the tests."""
