"""The fleet server: hawkBit's device interface, the TUF repository as static files, management."""
