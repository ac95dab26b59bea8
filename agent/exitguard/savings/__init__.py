"""ACCOUNT: exits out of counters, how many of them skipped an instruction, and what that costs. Pure."""
