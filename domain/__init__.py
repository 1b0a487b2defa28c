"""The rules of a coupon template: pure, standard library and msgspec only; no clock, no I/O."""
