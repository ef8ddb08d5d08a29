"""What may come in: what each argument may be, told before anything is computed."""
