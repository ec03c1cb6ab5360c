"""What a cache says about itself, for people."""
