"""What the doctor looks at: pure functions of the evidence, one module a subject."""
