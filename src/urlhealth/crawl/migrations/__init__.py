"""The database's schema, one revision after the other. Each stands for itself: `schema.py` moves on, these do not."""
