"""The pocket world: a generated miniature of the InstructGPT setting."""
