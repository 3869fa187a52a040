"""Pictures from files: decoded in one way, at one size, with the same few held out every time."""
