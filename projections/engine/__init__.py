"""What every projection runs on."""
