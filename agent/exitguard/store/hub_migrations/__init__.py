"""How the hub's database came to its present form: Alembic's environment. New revisions go to versions/."""
