"""`python -m ksmwalk`."""

from .commands.cli import main

raise SystemExit(main())
