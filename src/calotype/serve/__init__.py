"""A page and an API on this machine: `calotype serve` (extra `ui`)."""
