"""The RocketMQ client, tamed: every call bounded in time, every failure in words, every lost connection built anew."""
