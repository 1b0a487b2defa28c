"""RocketMQ through its client: every call bounded in time, every failure one sentence, lost connections replaced."""
