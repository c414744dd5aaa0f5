"""Who gets a release, and when: filter, plan and decisions as pure functions; the driver applies them to the store."""
