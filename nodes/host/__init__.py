"""The host seen from the pack: adapters only, no node classes."""
