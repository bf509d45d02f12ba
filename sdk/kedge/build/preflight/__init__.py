"""What will not run on a target, and why, before anything is built or sent."""
