"""What Alembic runs a migration in: the connection, and the transaction, of hub_database.py; logging is left alone."""

from alembic import context

from exitguard.store.hub_tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
