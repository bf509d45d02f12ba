"""What a device tells of itself in /proc and /sys; every reading takes a root, so that recorded trees can be read."""
