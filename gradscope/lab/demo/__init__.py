"""What ``gradscope demo`` trains and tells."""
