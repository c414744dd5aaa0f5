"""The parts of the running agent that tie the others together; `agent.app` builds them."""
