"""`python -m analyses`: see `analyses.shared.command`."""

from __future__ import annotations

import sys

from analyses.shared.command import main

if __name__ == "__main__":
    sys.argv[:1] = ["-m", "analyses"]  # provenance records the command as it was typed
    main(sys.argv[2:])
