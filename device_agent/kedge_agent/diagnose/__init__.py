"""What can be found out on the device about how it does: without the daemon, which may be what is sick."""
