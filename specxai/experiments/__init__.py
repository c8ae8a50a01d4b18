"""The paper's own systems: what stands on the library and nothing of it stands on."""
