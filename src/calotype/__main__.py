"""`python -m calotype`."""

from calotype.cli.app import main

main()
