"""`python -m kedge_agent`."""

import sys

from kedge_agent.cli import main

sys.exit(main())
