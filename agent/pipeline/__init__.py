"""The stage loops and queues. Sees ports and pure code only."""
