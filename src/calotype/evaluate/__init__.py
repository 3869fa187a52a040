"""How good pictures are: alone beside their originals, and as a set beside another set."""
