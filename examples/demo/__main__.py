"""`python examples/demo`. Ctrl-C is no error, not even during the imports, which take half a second."""

import sys

INTERRUPTED = 130
"""The exit code after Ctrl-C and SIGTERM, as shells have it."""

try:
    from command import main

    main()
except KeyboardInterrupt:
    sys.exit(INTERRUPTED)
