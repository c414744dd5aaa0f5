"""Files over HTTP, for the catalogue of models and for updates."""
