"""The rules of a coupon template: pure, standard library and msgspec only; no clock, no I/O.

Structs are frozen and hold no cycles, so the garbage collector is spared them (`gc=False`): a chunk of a thousand
commands makes some ten thousand, and ends in bulk go about a fifth faster for it.
"""
