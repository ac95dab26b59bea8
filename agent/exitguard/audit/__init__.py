"""JUDGE: pure. From facts and a policy to states, chains and findings; no I/O, no clock."""
