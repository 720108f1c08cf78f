"""What a solution is worth: answers, and the values of unfinished text."""
