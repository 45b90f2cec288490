"""Random cases: data, networks and settings as users bring them, each correct or a named error."""
