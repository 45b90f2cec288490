"""Networks of every kind that torch users meet, through everything that a network goes through."""
