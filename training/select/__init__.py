"""The command `select`: train a selector, which chooses among several latents for each seed."""
