"""What is collected of a device: a module a subject, and the table of all."""
