"""Tell: what was found, for people and for programs, one file a page or a format. Nothing here reads the world."""
