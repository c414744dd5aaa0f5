"""Further ways out for alarms and events beside the broker: webhook, file, plug-ins. Each has its own place in the history."""
