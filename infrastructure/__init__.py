"""What talks to PostgreSQL and RocketMQ."""
