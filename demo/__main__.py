"""`python -m coupon_clock.demo`. Ctrl-C is no error, not even during the imports, which take half a second."""

import sys

from coupon_clock.demo import INTERRUPTED

try:
    from coupon_clock.demo.command import main

    main()
except KeyboardInterrupt:
    sys.exit(INTERRUPTED)
