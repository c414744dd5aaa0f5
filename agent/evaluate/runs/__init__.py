"""Measurements that run the agent's parts over images, clips and scenes; the figures are computed in `agent.evaluate`."""
