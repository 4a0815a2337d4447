"""What make_sample.py is made of: the texts of a shop, its hidden world, and the visits that its log records."""
