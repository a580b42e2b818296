"""Records turned into outcomes, verdicts and pages; never touches a model."""
