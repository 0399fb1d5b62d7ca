"""`python -m omninode_bridge`: the command line."""

import sys

from omninode_bridge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
