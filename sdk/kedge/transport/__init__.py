"""How the host reaches an agent: over SSH, or as a child process. Nothing here knows about releases."""
