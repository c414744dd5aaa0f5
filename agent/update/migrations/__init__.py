"""Schema of the journal, one numbered step a file."""
