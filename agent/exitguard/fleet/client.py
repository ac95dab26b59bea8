"""The host's side of the protocol (docs/fleet.md)."""
