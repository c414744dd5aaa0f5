"""Release tools: signing keys, the TUF repository, what is on its list."""
