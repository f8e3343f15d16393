"""Alembic's entry point: runs the revisions on the connection that `open_database` hands over, in its transaction."""

from alembic import context

from urlhealth.crawl.database import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
