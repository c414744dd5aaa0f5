"""What the fleet server remembers: tables, migrations and the functions that work on them, for SQLite and PostgreSQL."""
