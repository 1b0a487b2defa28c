"""A projection made anew from the log, while the old rows serve."""
