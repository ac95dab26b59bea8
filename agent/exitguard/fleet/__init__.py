"""TELL THE FLEET: hosts push what they observed to a hub, which answers for all of them. docs/fleet.md is the protocol."""
