"""`python -m workbench`: as the command `workbench`."""

from workbench.console import main

if __name__ == "__main__":
    raise SystemExit(main())
