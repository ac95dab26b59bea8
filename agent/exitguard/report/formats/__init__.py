"""One file a format of `exitguard report`. Each takes the hosts one by one, so that a fleet need not fit into memory."""
