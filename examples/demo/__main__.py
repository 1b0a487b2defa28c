"""`python examples/demo`. Ctrl-C is no error, not even during the imports, which take half a second."""

import sys

try:
    from command import main

    main()
except KeyboardInterrupt:
    sys.exit(130)
