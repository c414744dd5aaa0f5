"""The fleet side: release tools, server and rollouts."""
