"""Devices: where a runtime runs. One file a transport; a new one is one line in the registry."""
