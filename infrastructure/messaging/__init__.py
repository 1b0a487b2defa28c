"""Brokers: the contract, the in-process one and RocketMQ. Knows no alarm."""
