"""The layouts of others."""
