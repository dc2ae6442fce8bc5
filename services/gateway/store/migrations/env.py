"""Runs the migrations on the connection that `upgrade` hands over; the transaction is the caller's."""

from alembic import context

from services.gateway.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
