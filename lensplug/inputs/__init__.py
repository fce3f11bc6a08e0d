"""What a core is given: `MultimodalInput`, and what can be made of one."""
