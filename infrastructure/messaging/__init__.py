"""Brokers: the contract, the in-process one and RocketMQ. All that passes is ExpiryDue."""
