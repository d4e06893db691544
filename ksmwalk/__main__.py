"""`python -m ksmwalk`."""

from .cli import main

raise SystemExit(main())
