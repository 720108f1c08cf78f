"""Whether searches pay: accuracy and cost of each on questions with a known answer, on one model, on one machine."""
