"""What a run would cost: operations counted, rates measured or stated, and the plan of both."""
