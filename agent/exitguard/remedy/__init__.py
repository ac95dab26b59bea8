"""DECIDE: what to change, in which order, and how to undo it. Pure: what carries it out is `act/`, and the playbooks."""
