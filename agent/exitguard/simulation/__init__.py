"""A fleet that does not exist: what its hosts would observe, judged and pushed by the program's own code."""
