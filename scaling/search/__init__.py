"""What to run next, and what a sweep would identify before it is run, on the response surface."""
