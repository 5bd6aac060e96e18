"""Runs that can be trained by name: one TOML file each."""
