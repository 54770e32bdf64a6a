"""Image files: finding, decoding and streaming them."""
