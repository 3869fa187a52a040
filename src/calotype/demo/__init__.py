"""The embedded portraits, their captions, and the judges that know what is drawn on them."""
