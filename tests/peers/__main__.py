"""`python -m tests.peers PATH...`: other libraries' attention tests on this package's ops (docs/peer_suites.md)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import peer_runner

sys.exit(peer_runner.main(sys.argv[1:]))
