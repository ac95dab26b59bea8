"""The guard, read from the machine code of a kernel image."""
