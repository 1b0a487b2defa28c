"""What an operator runs: verify, repair, doctor."""
