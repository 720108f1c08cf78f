"""Process reward models: a second model that scores the steps of a solution."""
