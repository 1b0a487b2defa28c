"""The main job, live: forty templates of three shops end themselves on real servers. `python -m coupon_clock.demo`."""

INTERRUPTED = 130
"""The exit code after Ctrl-C and SIGTERM, as shells have it."""
