"""The command line: argument parsing, console output, and one function per command."""
