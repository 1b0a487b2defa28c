"""Coupon Clock: coupon templates that end exactly on time (README.md)."""
