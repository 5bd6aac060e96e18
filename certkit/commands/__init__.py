"""One file per command, each a thin caller of a documented function; heavy imports stand inside the bodies."""
