"""What ``gradscope sweep`` trains and tells."""
