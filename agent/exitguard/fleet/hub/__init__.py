"""The hub: what it answers to whom. Handlers are synchronous and know no web framework; web.py alone serves HTTP."""
