"""What is given is held against what is expected, and refused in words."""
