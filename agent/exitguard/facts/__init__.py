"""OBSERVE: one file a source. `read()` touches the world and says why where it cannot see; `parse()` is pure."""
