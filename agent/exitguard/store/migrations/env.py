"""What Alembic runs a migration in: the connection, and the transaction, of database.py; logging is left alone."""

from alembic import context

from exitguard.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
