"""The user's callable: how it is called, what it is made of, and all that it uses made explicit."""
