"""Small exercises that the tests of the exercise engine use in place of the course's own."""
