"""What ``gradscope lab lecture`` measures and tells."""
