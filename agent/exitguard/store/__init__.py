"""REMEMBER: what was observed, what it meant, when that changed, and what could not be stored. Imports the vocabulary only.

`exitguard.store.errors` is light; `exitguard.store.host` imports SQLAlchemy, so import it where it is used.
"""
